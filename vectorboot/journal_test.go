package vectorboot

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"testing"

	"vbootfs/ggufview"
	"vbootfs/shm"
)

// broken is a store as a daemon left it that died in a commit: a segment, what it
// was going to write, and a journal.
type broken struct {
	rt     *Runtime
	seg    *shm.Node
	before []byte
	staged []byte
}

const stagedName = "1-1"

func newBroken(t testing.TB, rt *Runtime) *broken {
	t.Helper()
	b := &broken{rt: rt, before: modelBytes(t), staged: []byte("0123456789abcdef-more")}
	var err error
	if b.seg, err = rt.Store().Live.Create("m.gguf", 0o644, nil); err != nil {
		t.Fatal(err)
	}
	if _, err = b.seg.WriteAt(b.before, 0); err != nil {
		t.Fatal(err)
	}
	b.seg.Close()
	if b.seg, err = rt.Store().Live.Lookup("m.gguf"); err != nil {
		t.Fatal(err)
	}
	putFile(t, rt.Store().Stage, stagedName, b.staged)
	return b
}

func putFile(t testing.TB, dir *shm.Node, name string, b []byte) {
	t.Helper()
	_ = dir.Unlink(name)
	n, err := dir.Create(name, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := n.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
}

// journal writes one; INO stands for the number of the segment. sealed adds the checksum.
func (b *broken) journal(t testing.TB, text string, sealed bool) {
	t.Helper()
	text = strings.ReplaceAll(text, "INO", strconv.FormatUint(b.seg.Ino, 10))
	if sealed {
		text += fmt.Sprintf("\n%08x\n", crc32.Checksum([]byte(text), castagnoli))
	}
	putFile(t, b.rt.Store().Stage, journalPrefix+strconv.FormatUint(b.seg.Ino, 10), []byte(text))
}

// control makes the page of the model as a commit leaves it: begun or not.
func (b *broken) control(t testing.TB, begun bool) {
	t.Helper()
	page, err := openControl(b.rt.Store(), "m.gguf")
	if err != nil {
		t.Fatal(err)
	}
	if begun {
		page.begin()
	}
	page.close()
}

// after is the segment, whatever its name is.
func (b *broken) after(t testing.TB) []byte {
	t.Helper()
	out := make([]byte, b.seg.Size())
	if _, err := b.seg.ReadAt(out, 0); err != nil {
		t.Fatal(err)
	}
	return out
}

// goodJournal is of tensor a, at the offset that it has in modelBytes.
func goodJournal(t testing.TB) string {
	f, err := ggufview.Parse(modelBytes(t), int64(len(modelBytes(t))))
	if err != nil {
		t.Fatal(err)
	}
	a, _ := f.Tensor("a")
	return fmt.Sprintf(`{"ino":INO,"path":"bS5nZ3Vm","generation":2,"noted":0,"patches":[{"off":%d,"bytes":%d,"file":"1-1","at":2}]}`, a.Offset, a.Bytes)
}

func TestJournalIsBelievedWhereItFits(t *testing.T) {
	good := goodJournal(t)
	for _, c := range []struct {
		name, text string
		sealed     bool
	}{
		{"no checksum", good, false},
		{"empty", "", false},
		{"another segment", strings.Replace(good, "INO", "1", 1), true},
		{"an offset", strings.Replace(good, `"off":`, `"off":1`, 1), true},
		{"a negative offset", strings.Replace(good, `"off":`, `"off":-`, 1), true},
		{"a size", strings.Replace(good, `"bytes":16`, `"bytes":17`, 1), true},
		{"beyond the new bytes", strings.Replace(good, `"at":2`, `"at":6`, 1), true},
		{"before the new bytes", strings.Replace(good, `"at":2`, `"at":-1`, 1), true},
		{"overflow", strings.Replace(good, `"at":2`, `"at":9223372036854775807`, 1), true},
		{"another directory", strings.Replace(good, `"1-1"`, `"../live/m.gguf"`, 1), true},
		{"itself", strings.Replace(good, `"1-1"`, `"journal-INO"`, 1), true},
		{"a generation", strings.Replace(good, `"noted":0`, `"noted":7`, 1), true},
		{"more than there is", strings.Replace(good, `"noted"`, `"notes"`, 1), true},
	} {
		for _, begun := range []bool{false, true} {
			rt := newRuntime(t, t.TempDir())
			b := newBroken(t, rt)
			b.control(t, begun)
			b.journal(t, c.text, c.sealed)
			damaged, err := rt.Mend()
			if err != nil || len(damaged) != 1 {
				t.Errorf("%s: %v, %v", c.name, damaged, err)
			}
			if err := rt.Recover(); err != nil {
				t.Error(c.name, err)
			}
			if !bytes.Equal(b.after(t), b.before) {
				t.Errorf("%s: the segment was written", c.name)
			}
			b.seg.Close()
			checkAside(t, rt, c.name, begun)
		}
	}
}

// checkAside checks what is left after a damaged journal.
func checkAside(t *testing.T, rt *Runtime, name string, begun bool) {
	t.Helper()
	if loaded := rt.Generation("m.gguf") > 0; loaded == begun {
		t.Errorf("%s: begun %v, loaded %v", name, begun, loaded)
	}
	if n, err := rt.Store().Live.Lookup("m.gguf.rejected"); (err == nil) != begun {
		t.Errorf("%s: begun %v, the rejected file: %v", name, begun, err)
	} else if err == nil {
		n.Close()
	}
	left, err := rt.Store().Stage.Names()
	if err != nil || len(left) != 1 || !strings.HasPrefix(left[0].Name, damagedPrefix) {
		t.Errorf("%s: left in stage: %v %v", name, left, err)
	}
	if damaged, err := rt.Mend(); err != nil || len(damaged) > 0 {
		t.Errorf("%s: the next start: %v %v", name, damaged, err)
	}
}

func TestJournalFindsARenamedModel(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	b := newBroken(t, rt)
	defer b.seg.Close()
	b.journal(t, goodJournal(t), true)
	if err := rt.Store().Live.Rename("m.gguf", rt.Store().Live, "n.gguf", 0); err != nil {
		t.Fatal(err)
	}
	mend(t, rt)
	if !bytes.Contains(b.after(t), b.staged[2:18]) || rt.Generation("n.gguf") != 2 {
		t.Errorf("generation %d: the commit was not completed", rt.Generation("n.gguf"))
	}
}

// FuzzJournal: whatever a journal says, afterwards the model is as it was, or has
// new bytes in tensors and nowhere else, and nothing else was touched.
func FuzzJournal(f *testing.F) {
	good := goodJournal(f)
	f.Add(good, true)
	f.Add(good, false)
	f.Add(strings.Replace(good, `"at":2`, `"at":20`, 1), true)
	f.Add(strings.Replace(good, `"1-1"`, `"journal-INO"`, 1), true)
	rt := newRuntime(f, f.TempDir())
	b := newBroken(f, rt)
	f.Cleanup(func() { b.seg.Close() })
	putFile(f, rt.Store().Live, "other", []byte("untouched"))
	f.Fuzz(func(t *testing.T, text string, sealed bool) {
		if _, err := b.seg.WriteAt(b.before, 0); err != nil {
			t.Fatal(err)
		}
		_ = b.seg.Removexattr(rt.Store().Mark("generation"))
		_ = rt.Store().Live.Rename("m.gguf.rejected", rt.Store().Live, "m.gguf", 0)
		putFile(t, rt.Store().Stage, stagedName, b.staged)
		b.journal(t, text, sealed)
		if _, err := rt.Mend(); err != nil {
			t.Fatal(err)
		}
		checkOnlyTensors(t, b)
		other, err := rt.Store().Live.Lookup("other")
		if err != nil || other.Size() != 9 {
			t.Fatal("another file was touched", err)
		}
		other.Close()
	})
}

// checkOnlyTensors compares the segment with what it was, tensor by tensor.
func checkOnlyTensors(t *testing.T, b *broken) {
	t.Helper()
	now := b.after(t)
	f, err := ggufview.Parse(b.before, int64(len(b.before)))
	if err != nil || len(now) != len(b.before) {
		t.Fatalf("%d bytes, were %d: %v", len(now), len(b.before), err)
	}
	for _, x := range f.Tensors() {
		part := now[x.Offset : x.Offset+x.Bytes]
		if !bytes.Equal(part, b.before[x.Offset:x.Offset+x.Bytes]) && !bytes.Contains(b.staged, part) {
			t.Errorf("tensor %s is %q", x.Name, part)
		}
		copy(part, b.before[x.Offset:])
	}
	if !bytes.Equal(now, b.before) {
		t.Error("bytes outside of the tensors were written")
	}
}
