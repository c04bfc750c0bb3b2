package fs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What somebody mounts on a directory of the mount stays there when a model changes,
// and the change is seen all the same.
func TestMountsOnUsStay(t *testing.T) {
	s := mount(t)
	dir := filepath.Join(s.out, "sub/deep")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	generation := filepath.Join(s.vb, "models/m.gguf/generation")
	write(t, filepath.Join(s.out, "m.gguf"), model(t, 1))
	want(t, generation, "1\n")
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // unless it went well
	write(t, filepath.Join(dir, "here"), []byte("x"))
	write(t, filepath.Join(s.out, "m.gguf"), model(t, 2))
	want(t, generation, "2\n")
	if _, err := os.Stat(filepath.Join(dir, "here")); err != nil {
		t.Error(err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
	write(t, filepath.Join(s.out, "m.gguf"), model(t, 3))
	want(t, generation, "3\n")
}
