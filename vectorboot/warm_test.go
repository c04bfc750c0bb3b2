package vectorboot

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vbootfs/shm"
)

// withSource is a runtime over a SOURCE that holds m.gguf, as a mount begins.
func withSource(t *testing.T, dir, base string) *Runtime {
	t.Helper()
	st, err := shm.Open(shm.Config{Base: base, ID: "t", Limit: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	src, err := OpenSource(dir, st, false)
	if err != nil {
		t.Fatal(err)
	}
	rt := New(st, src)
	mend(t, rt)
	if err := src.Start(st.Attached); err != nil {
		t.Fatal(err)
	}
	if err := rt.Recover(); err != nil {
		t.Fatal(err)
	}
	return rt
}

func finish(t *testing.T, rt *Runtime) {
	t.Helper()
	if err := rt.source.Close(); err != nil {
		t.Error(err)
	}
	rt.Close()
}

func modelDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "m.gguf"), modelBytes(t), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func generation(t *testing.T, rt *Runtime) uint64 {
	t.Helper()
	i, ok := rt.Info("m.gguf")
	if !ok {
		t.Fatal("m.gguf is no model")
	}
	return i.Generation
}

// TestNumbersGoOn evicts a model of some generations: its number outlives a kill,
// while it is cold and when it is back.
func TestNumbersGoOn(t *testing.T) {
	dir, base := modelDir(t), t.TempDir()
	rt := withSource(t, dir, base)
	for i := range 2 {
		if err := rt.Load(context.Background(), "m.gguf"); err != nil {
			t.Fatal(err)
		}
		setKey(t, rt, "general.name", string(rune('a'+i)))
	}
	if err := rt.Evict("m.gguf"); err != nil {
		t.Fatal(err)
	}
	for _, state := range []State{Cold, Loaded} {
		want := generation(t, rt)
		finish(t, rt)
		rt.store.Abandon()
		rt = withSource(t, dir, base)
		if i, _ := rt.Info("m.gguf"); i.Generation != want || i.State != state {
			t.Errorf("%s: generation %d of a %s model, want %d", state, i.Generation, i.State, want)
		}
		if err := rt.Load(context.Background(), "m.gguf"); err != nil {
			t.Fatal(err)
		}
	}
	finish(t, rt)
	if err := rt.store.Close(); err != nil {
		t.Error(err)
	}
}

// TestWarmedFileIsProtected: a file that came from SOURCE is protected, when it is no
// model any more, as others are that were models: readers have it mapped.
func TestWarmedFileIsProtected(t *testing.T) {
	rt := withSource(t, modelDir(t), t.TempDir())
	if err := rt.Load(context.Background(), "m.gguf"); err != nil {
		t.Fatal(err)
	}
	g := rt.Acquire("m.gguf")
	rt.Remove("m.gguf")
	if !rt.Fixed(g.Seg.Node) {
		t.Error("it may be written in place")
	}
	g.Release()
	finish(t, rt)
	if err := rt.store.Close(); err != nil {
		t.Error(err)
	}
}

// TestQuietTimeIsPending: a name that has been quiet for long enough is on the list
// of what is pending before it leaves that of what will be.
func TestQuietTimeIsPending(t *testing.T) {
	p := at(t, "a")
	p.src.one.Lock() // SOURCE is busy
	p.src.notes.mu.Lock()
	p.src.MarkLater("a")
	for waits := true; waits; time.Sleep(time.Millisecond) {
		p.src.mu.Lock()
		waits = p.src.later["a"] != nil
		p.src.mu.Unlock()
	}
	if n, _ := p.src.Pending(); n != 1 {
		t.Errorf("%d names are pending", n)
	}
	p.src.notes.mu.Unlock()
	p.src.one.Unlock()
	closeSource(t, p)
}
