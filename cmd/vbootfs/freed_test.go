package main

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRemovedModelsAreFreed: the memory of a removed model is free though the kernel
// still remembers names of it, and nobody looks at the mount.
func TestRemovedModelsAreFreed(t *testing.T) {
	m := newMount(t, "none")
	m.put(makeModel(t, "8M", 1), "a.gguf")
	must(t, "ls", "-lR", m.boot("models/a.gguf"))
	same(t, m.boot("models/a.gguf/model.gguf"), read(t, m.out("a.gguf")))
	if used(t, m.dir) < 4<<20 {
		t.Fatal("no memory is in use")
	}
	if err := os.Remove(m.out("a.gguf")); err != nil {
		t.Fatal(err)
	}
	until(t, "the memory is free", func() bool { return used(t, m.dir) < 4<<20 })
}

// used is how many bytes of memory a mount says it takes. It looks up no name in it.
func used(t *testing.T, dir string) uint64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return (st.Blocks - st.Bfree) * uint64(st.Bsize)
}
