package vectorboot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
)

func TestWhole(t *testing.T) {
	for p, want := range map[string]string{
		"a-00001-of-00002.gguf":     "a.gguf 1 2",
		"d/x.y-00012-of-00012.gguf": "d/x.y.gguf 12 12",
		"a-00001-of-00001.gguf":     "",
		"a-00003-of-00002.gguf":     "",
		"a-00000-of-00002.gguf":     "",
		"-00001-of-00002.gguf":      "",
		"d/-00001-of-00002.gguf":    "",
		".a-00001-of-00002.gguf":    "",
		"a-0001-of-0002.gguf":       "",
		"a-+0001-of-00002.gguf":     "",
		"a-00001-of-00002.bin":      "",
		"a-00001-of-100000.gguf":    "",
	} {
		got := ""
		if whole, no, of, ok := Whole(p); ok {
			got = fmt.Sprint(whole, " ", no, " ", of)
		}
		if got != want {
			t.Errorf("%s is %q, want %q", p, got, want)
		}
	}
}

// shardBytes is shard no of 3, with one tensor of 8 bytes that are all fill.
func shardBytes(t *testing.T, no int, fill byte) []byte {
	t.Helper()
	b, err := (&ggufview.Spec{
		KV:      []ggufview.SpecKV{{Key: "split.no", Value: uint16(no - 1)}, {Key: "split.count", Value: uint16(3)}, {Key: "split.tensors.count", Value: int32(3)}},
		Tensors: []ggufview.SpecTensor{{Name: fmt.Sprint("t", no), NE: []int64{8}, Type: ggufview.I8, Data: []byte(strings.Repeat(string(fill), 8))}},
	}).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func shardName(no int) string { return fmt.Sprintf("m-%05d-of-00003.gguf", no) }

// put loads bytes under a name as the mount does: a new file each time.
func put(t *testing.T, rt *Runtime, p string, b []byte) {
	t.Helper()
	_ = rt.Store().Live.Unlink(p)
	n, err := rt.Store().Live.Create(p, 0o644, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := n.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if g, err := Judge(n); err != nil {
		rt.Fail(p, err)
	} else {
		rt.Publish(p, g)
	}
}

func remove(t *testing.T, rt *Runtime, p string) {
	t.Helper()
	if err := rt.Store().Live.Unlink(p); err != nil {
		t.Fatal(err)
	}
	rt.Remove(p)
}

// content is the data of the tensors t1, t2, t3 of m.gguf, with a blank between.
func content(t *testing.T, rt *Runtime) string {
	t.Helper()
	g := rt.Acquire("m.gguf")
	if g == nil {
		return "nothing"
	}
	defer g.Release()
	return contentOf(t, g)
}

func contentOf(t *testing.T, g *Generation) string {
	t.Helper()
	var out []string
	for _, x := range g.Info.Tensors() {
		b := make([]byte, x.Bytes)
		if n, err := g.ReadAt(b, x.Offset); n < len(b) {
			t.Fatal(err)
		}
		if mapped, ok := g.Slice(x.Offset, x.Bytes); !ok || string(mapped) != string(b) {
			t.Errorf("%s is %q in the mapping and %q in the file", x.Name, mapped, b)
		}
		out = append(out, string(b[:1]))
	}
	return strings.Join(out, " ")
}

func wantInfo(t *testing.T, rt *Runtime, state State, generation uint64, err string) {
	t.Helper()
	i, ok := rt.Info("m.gguf")
	if !ok || i.State != state || i.Generation != generation || !strings.Contains(i.Error, err) || (err == "") != (i.Error == "") {
		t.Errorf("have %+v (%v), want %s %d %q", i, ok, state, generation, err)
	}
}

// A set is the whole model whatever order its shards come in.
func TestShardsInAnyOrder(t *testing.T) {
	for _, order := range [][]int{{1, 2, 3}, {3, 1, 2}, {2, 3, 1}} {
		rt := newRuntime(t, t.TempDir())
		if _, ok := rt.Info("m.gguf"); ok {
			t.Error("a model of nothing")
		}
		put(t, rt, shardName(order[0]), shardBytes(t, order[0], byte('a'+order[0])))
		wantInfo(t, rt, Failed, 0, "missing: "+shardName(min(order[1], order[2]))+", "+shardName(max(order[1], order[2])))
		put(t, rt, shardName(order[1]), shardBytes(t, order[1], byte('a'+order[1])))
		wantInfo(t, rt, Failed, 0, "missing: "+shardName(order[2]))
		if rt.Acquire("m.gguf") != nil {
			t.Error("a model with a shard missing")
		}
		put(t, rt, shardName(order[2]), shardBytes(t, order[2], byte('a'+order[2])))
		wantInfo(t, rt, Loaded, 3, "")
		if got := content(t, rt); got != "b c d" {
			t.Errorf("the whole is %q", got)
		}
		if got := rt.Paths(); len(got) != 4 || got[3] != "m.gguf" {
			t.Errorf("models %v", got)
		}
	}
}

// threeShards loads them all.
func threeShards(t *testing.T) *Runtime {
	t.Helper()
	rt := newRuntime(t, t.TempDir())
	for no := 1; no <= 3; no++ {
		put(t, rt, shardName(no), shardBytes(t, no, byte('a'+no)))
	}
	return rt
}

// Each change of a shard is a generation of the whole; who holds an old one keeps it.
func TestChangesOfShards(t *testing.T) {
	rt := threeShards(t)
	old := rt.Acquire("m.gguf")
	if again := rt.Acquire("m.gguf"); again != old {
		t.Error("the same whole twice")
	} else {
		again.Release()
	}
	put(t, rt, shardName(2), shardBytes(t, 2, 'X'))
	wantInfo(t, rt, Loaded, 4, "")
	if got := content(t, rt); got != "b X d" {
		t.Errorf("after a replacement %q", got)
	}
	if got := contentOf(t, old); got != "b c d" {
		t.Errorf("the old generation became %q", got)
	}
	old.Release()

	n := staged(t, rt, []byte("YYYYYYYY"))
	defer n.Close()
	if err := rt.Commit("m.gguf", []TensorEdit{{Name: "t3", File: n}}, nil); err != nil {
		t.Fatal(err)
	}
	wantInfo(t, rt, Loaded, 5, "")
	if got := content(t, rt); got != "b X Y" {
		t.Errorf("after a commit %q", got)
	}
	for what, err := range map[string]error{
		"two shards": rt.Commit("m.gguf", []TensorEdit{{Name: "t1", File: n}, {Name: "t3", File: n}}, nil),
		"a key":      rt.Commit("m.gguf", nil, []KeyEdit{{KeyEdit: ggufview.KeyEdit{Key: "k", Value: "v"}}}),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("a commit to %s: %v", what, err)
		}
	}

	put(t, rt, shardName(1), shardBytes(t, 2, 'Z'))
	wantInfo(t, rt, Failed, 0, "shard 1: split.no is 1, not 0")
	put(t, rt, shardName(1), shardBytes(t, 1, 'Z'))
	wantInfo(t, rt, Loaded, 7, "")

	remove(t, rt, shardName(2))
	wantInfo(t, rt, Failed, 0, "missing: "+shardName(2))
	if len(rt.joined.wholes) > 0 {
		t.Error("the header of a whole that is gone is kept")
	}
	put(t, rt, shardName(2), []byte("GGUF"))
	wantInfo(t, rt, Failed, 0, shardName(2)+": at byte 4")
	remove(t, rt, shardName(2))
	remove(t, rt, shardName(1))
	remove(t, rt, shardName(3))
	if i, ok := rt.Info("m.gguf"); ok || len(rt.Paths()) > 0 {
		t.Errorf("left: %v %v", i, rt.Paths())
	}
}

// A file of the whole's name hides the set.
func TestWholeByTheSameName(t *testing.T) {
	rt := threeShards(t)
	put(t, rt, "m.gguf", shardBytes(t, 1, 'F'))
	wantInfo(t, rt, Loaded, 1, "")
	if got := content(t, rt); got != "F" || len(rt.Paths()) != 4 {
		t.Errorf("the file is %q among %v", got, rt.Paths())
	}
	remove(t, rt, "m.gguf")
	wantInfo(t, rt, Loaded, 3, "")
	// Shards of another split are another set: the complete one is shown.
	put(t, rt, "m-00001-of-00009.gguf", shardBytes(t, 1, 'N'))
	wantInfo(t, rt, Loaded, 3, "")
	remove(t, rt, shardName(1))
	wantInfo(t, rt, Failed, 0, "missing: "+shardName(1))
	remove(t, rt, shardName(2))
	remove(t, rt, shardName(3))
	wantInfo(t, rt, Failed, 0, "m-00008-of-00009.gguf")
	rt.Move("m-00001-of-00009.gguf", "n-00001-of-99999.gguf")
	if i, ok := rt.Info("n.gguf"); !ok || !strings.HasSuffix(i.Error, ", and 99990 more") || len(i.Error) > 300 {
		t.Errorf("missing: %v", i)
	}
}

func TestCommandsOfWholes(t *testing.T) {
	rt := threeShards(t)
	if err := rt.Activate("m.gguf"); err != nil || rt.Active() != "m.gguf" {
		t.Errorf("active is %s: %v", rt.Active(), err)
	}
	if err := rt.Load(context.Background(), "m.gguf"); err != nil {
		t.Error(err)
	}
	if err := rt.Evict("m.gguf"); !errors.Is(err, ErrNoSource) {
		t.Error(err)
	}
	if files := rt.Files("m.gguf"); len(files) != 3 || files[0] != shardName(1) {
		t.Errorf("files %v", files)
	}
	remove(t, rt, shardName(3))
	if rt.Active() == "m.gguf" {
		t.Error("what is not whole is active")
	}
}

// Readers and changes at the same time: what a reader holds is one generation.
func TestWholeUnderChange(t *testing.T) {
	rt := threeShards(t)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 200 {
				g := rt.Acquire("m.gguf")
				if g == nil {
					continue // a shard is being replaced
				}
				b := make([]byte, g.Size())
				if n, err := g.ReadAt(b, 0); int64(n) < g.Size() && err != io.EOF {
					t.Error(err)
				}
				if _, err := ggufview.Parse(b, g.Size()); err != nil {
					t.Error(err)
				}
				rt.Info("m.gguf")
				g.Release()
			}
		})
	}
	for i := range 100 {
		if no := 1 + i%3; i%10 == 9 {
			remove(t, rt, shardName(no))
			put(t, rt, shardName(no), shardBytes(t, no, 'r'))
		} else {
			put(t, rt, shardName(no), shardBytes(t, no, byte('a'+i%26)))
		}
	}
	group.Wait()
	for _, m := range rt.models {
		if n := m.cur.refs.Load(); n != 1 {
			t.Errorf("%s is held %d times", path.Base(m.path), n)
		}
	}
}
