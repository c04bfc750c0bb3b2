package vectorboot

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
	"vbootfs/shm"
)

// rename moves a model as the mount does.
func rename(t testing.TB, rt *Runtime, from, to string) {
	t.Helper()
	rt.Names.Lock()
	err := rt.Store().Live.Rename(from, rt.Store().Live, to, 0)
	var changes []Change
	if err == nil {
		changes = rt.Move(from, to)
	}
	rt.Names.Unlock()
	rt.tell(changes)
	if err != nil {
		t.Error(err)
	}
}

func unlink(t testing.TB, rt *Runtime, p string) {
	t.Helper()
	rt.Names.Lock()
	err := rt.Store().Live.Unlink(p)
	changes := rt.Remove(p)
	rt.Names.Unlock()
	rt.tell(changes)
	if err != nil {
		t.Error(err)
	}
}

// together runs one function until the other has ended.
func together(until func(), meanwhile func(i int)) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
				meanwhile(i)
			}
		}
	})
	until()
	close(done)
	wg.Wait()
}

func TestRenameDuringCommits(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	n := staged(t, rt, floats(5, 6, 7, 8))
	defer n.Close()
	edit := []TensorEdit{{Name: "a", File: n}}
	together(func() {
		for range 300 {
			rename(t, rt, "m.gguf", "n.gguf")
			rename(t, rt, "n.gguf", "m.gguf")
		}
	}, func(i int) {
		var keys []KeyEdit
		if i%4 == 0 { // makes a new segment
			keys = []KeyEdit{{KeyEdit: ggufview.KeyEdit{Key: "k", Value: "x"}}}
		}
		if err := rt.Commit("m.gguf", edit, keys); err != nil && !errors.Is(err, ErrNoModel) {
			t.Error(err)
		}
	})
	if have := tensor(t, rt, "b"); string(have) != "abcdefgh" {
		t.Errorf("b is %q", have)
	}
	if left, err := rt.Store().Stage.Names(); err != nil || len(left) > 0 {
		t.Errorf("left in stage: %v %v", left, err)
	}
}

// TestNewSegmentIsNotStarved: somebody commits all the time, and a change that has
// to copy the model is made all the same.
func TestNewSegmentIsNotStarved(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	n := staged(t, rt, floats(5, 6, 7, 8))
	defer n.Close()
	together(func() {
		for i := range 20 {
			setKey(t, rt, "k", uint32(i))
		}
	}, func(int) {
		if err := rt.Commit("m.gguf", []TensorEdit{{Name: "a", File: n}}, nil); err != nil {
			t.Error(err)
		}
	})
	g := rt.Acquire("m.gguf")
	defer g.Release()
	if v, _ := g.Info.Find("k"); string(g.Info.ValueText(v)) != "19\n" {
		t.Errorf("k is %s", g.Info.ValueText(v))
	}
}

// TestAloneMakesOthersWait is the last attempt of advance, without the ones before.
func TestAloneMakesOthersWait(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	keys := []KeyEdit{{KeyEdit: ggufview.KeyEdit{Key: "k", Value: "x"}}}
	decide := func(m *Model, g *Generation) (*step, error) { return rt.commitStep(m, g, nil, keys) }
	changes, again, err := rt.attempt(target{path: "m.gguf"}, decide, true)
	if again || err != nil {
		t.Fatal(again, err)
	}
	rt.tell(changes)
	if n := rt.Generation("m.gguf"); n != 2 {
		t.Errorf("generation %d", n)
	}
	if !rt.change.TryLock() || !rt.Names.TryLock() {
		t.Fatal("a lock is held")
	}
	rt.change.Unlock()
	rt.Names.Unlock()
}

// draftOf stages zeros for tensor a in a new draft.
func draftOf(t *testing.T, rt *Runtime, p string) *Draft {
	t.Helper()
	if err := rt.NewDraft(p, "d"); err != nil {
		t.Fatal(err)
	}
	d := rt.Draft(p, "d")
	if err := d.Stage("a", staged(t, rt, floats(0, 0, 0, 0)), rt.Generation(p)); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDraftIsForItsModel(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	d := draftOf(t, rt, "m.gguf")
	unlink(t, rt, "m.gguf")
	load(t, rt, "m.gguf")
	if err := d.Commit("m.gguf"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("the model was removed and another one has its name: %v", err)
	}

	d = draftOf(t, rt, "m.gguf")
	rename(t, rt, "m.gguf", "n.gguf")
	load(t, rt, "m.gguf")
	if err := d.Commit("m.gguf"); err != nil {
		t.Errorf("the model was renamed: %v", err)
	}
	if rt.Generation("m.gguf") != 1 || rt.Generation("n.gguf") != 2 {
		t.Errorf("generations %d and %d", rt.Generation("m.gguf"), rt.Generation("n.gguf"))
	}

	d = draftOf(t, rt, "m.gguf")
	old := rt.Acquire("m.gguf")
	defer old.Release()
	load2(t, rt, "m.gguf")
	if err := d.Commit("m.gguf"); !errors.Is(err, ErrConflict) {
		t.Errorf("the model was replaced: %v", err)
	}
	edit := staged(t, rt, floats(1, 1, 1, 1))
	defer edit.Close()
	unlink(t, rt, "m.gguf")
	load(t, rt, "m.gguf")
	if err := rt.CommitTo(old, []TensorEdit{{Name: "a", File: edit}}, nil); !errors.Is(err, ErrNoModel) {
		t.Errorf("a file of a removed model: %v", err)
	}
}

// load2 replaces a model.
func load2(t testing.TB, rt *Runtime, p string) {
	t.Helper()
	load(t, rt, "new.part")
	rename2(t, rt, "new.part", p)
}

// rename2 gives the name of a model to a file that is published under it.
func rename2(t testing.TB, rt *Runtime, from, to string) {
	t.Helper()
	n, err := rt.Store().Live.Lookup(from)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	g, err := Judge(n)
	if err != nil {
		t.Fatal(err)
	}
	rt.Names.Lock()
	err = rt.Store().Live.Rename(from, rt.Store().Live, to, 0)
	changes := append(rt.Remove(from), rt.Publish(to, g)...)
	rt.Names.Unlock()
	rt.tell(changes)
	if err != nil {
		t.Fatal(err)
	}
}

// TestOtherNamesKeepTheirBytes: a file of two names is two models, or a model and a copy.
func TestOtherNamesKeepTheirBytes(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	n, err := rt.Store().Live.Lookup("m.gguf")
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := rt.Store().Live.Link(n, "copy"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := commit(t, rt, "a", floats(5, 6, 7, 8)); err != nil {
			t.Fatal(err)
		}
	}
	var have [4096]byte
	k, _ := n.ReadAt(have[:], 0)
	if !bytes.Equal(have[:k], modelBytes(t)) {
		t.Error("the other name has new bytes")
	}
	if left := rt.History("m.gguf"); len(left) != 3 || left[1].Bytes != 16 {
		t.Errorf("history %v: the second commit was not in place", left)
	}
}

// TestFullStoreKeepsASparseModelWhole: a commit into a hole needs memory.
func TestFullStoreKeepsASparseModelWhole(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	text, err := (&ggufview.Spec{Tensors: []ggufview.SpecTensor{{Name: "a", NE: []int64{1 << 20}, Type: ggufview.F32}}}).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	n, err := rt.Store().Live.Create("m.gguf", 0o644, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := n.WriteAt(text[:4096], 0); err != nil {
		t.Fatal(err)
	}
	if err := n.Truncate(int64(len(text))); err != nil {
		t.Fatal(err)
	}
	g, err := Judge(n)
	if err != nil {
		t.Fatal(err)
	}
	rt.tell(rt.Publish("m.gguf", g))
	edit := staged(t, rt, bytes.Repeat([]byte{1}, 4<<20))
	defer edit.Close()
	hog := staged(t, rt, nil)
	defer hog.Close()
	fill(hog)
	if err := rt.Commit("m.gguf", []TensorEdit{{Name: "a", File: edit}}, nil); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v, want ENOSPC", err)
	}
	have := make([]byte, len(text)) // not through the mapping: to read a hole there takes memory, too
	if _, err := n.ReadAt(have, 0); err != nil || bytes.Contains(have, []byte{1, 1, 1, 1}) || rt.Generation("m.gguf") != 1 {
		t.Error("half of the commit happened", err)
	}
}

// fill takes what is left of the store.
func fill(hog *shm.Node) {
	for size := int64(64 << 20); size >= 4096; {
		if err := hog.Allocate(0, hog.Size(), size); err != nil {
			size /= 2
		}
	}
}

// TestWriteBackIsOfOneGeneration: whatever is committed meanwhile, SOURCE never
// holds half of it.
func TestWriteBackIsOfOneGeneration(t *testing.T) {
	dir := t.TempDir()
	p := newPair(t, dir)
	rt := New(p.Store, p.src)
	t.Cleanup(func() { rt.Close(); p.src.Close() })
	load(t, rt, "m.gguf")
	together(func() {
		for range 50 {
			if err := rt.Persist("m.gguf"); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(filepath.Join(dir, "m.gguf"))
			if err != nil {
				t.Fatal(err)
			}
			checkTwins(t, b)
		}
	}, func(i int) {
		v := float32(i % 100)
		a, b := staged(t, rt, floats(v, v, v, v)), staged(t, rt, floats(v, v))
		if err := rt.Commit("m.gguf", []TensorEdit{{Name: "a", File: a}, {Name: "b", File: b}}, nil); err != nil {
			t.Error(err)
		}
		a.Close()
		b.Close()
	})
}

// checkTwins checks that a and b are of the same commit, or of none.
func checkTwins(t *testing.T, file []byte) {
	t.Helper()
	f, err := ggufview.Parse(file, int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	a, _ := f.Tensor("a")
	b, _ := f.Tensor("b")
	x, y := file[a.Offset:a.Offset+8], file[b.Offset:b.Offset+8]
	if string(y) != "abcdefgh" && !bytes.Equal(x, y) {
		t.Errorf("a begins with %v, b is %v", x, y)
	}
}
