package fs

import (
	"path/filepath"
	"sync"
	"testing"

	"github.com/sirupsen/logrus"

	"vbootfs/fs/tree"
	"vbootfs/shm"
	"vbootfs/vectorboot"
)

// replace gives m.gguf a new segment as if the mount were asked to.
func replace(t *testing.T, rt *vectorboot.Runtime, content []byte) {
	t.Helper()
	live := rt.Store().Live
	_ = live.Unlink("m.gguf") // absent at first
	n, err := live.Create("m.gguf", 0o644, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := n.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	g, err := vectorboot.Judge(n)
	if err != nil {
		t.Fatal(err)
	}
	rt.Publish("m.gguf", g)
}

// row is the entry at a path of the tree.
func row(t *testing.T, rt *vectorboot.Runtime, names ...string) tree.Entry {
	t.Helper()
	e := tree.Root(rt)
	for _, name := range names {
		next, err := e.Lookup(name)
		if err != nil {
			t.Fatal(err)
		}
		e.Close()
		e = next
	}
	return e
}

// Changes of a model are told at the same time as others; who began to look at the
// earlier segment does not undo what who saw the later one has noted.
func TestStaleNodesStayStale(t *testing.T) {
	store, err := shm.Open(shm.Config{Base: filepath.Join(t.TempDir(), "s"), ID: "t", Limit: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	rt := vectorboot.New(store, nil)
	f := newFS(rt, Options{Log: logrus.New()})
	content := tiny(t, "w")
	replace(t, rt, content)
	for range 300 {
		n := f.internRow(row(t, rt, "vector_boot", "models", "m.gguf", "tensors"))
		var other sync.WaitGroup
		other.Go(func() { f.markStale("m.gguf") })
		replace(t, rt, content)
		f.markStale("m.gguf")
		other.Wait()
		f.mu.Lock()
		if !n.stale {
			t.Error("a row of the earlier segment counts as current")
		}
		f.mu.Unlock()
		f.Forget(n.id, 1)
	}
	rt.Close()
	if err := store.Close(); err != nil {
		t.Error(err)
	}
}
