package fs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEvictOfLinkedFile: a file of two names stays one file.
func TestEvictOfLinkedFile(t *testing.T) {
	s := mount(t, func(o *Options) { o.Source = t.TempDir() })
	m := loaded(t, s)
	one, two := filepath.Join(s.out, "m.gguf"), filepath.Join(s.out, "n.gguf")
	if err := os.Link(one, two); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "evicting a file of two names", os.WriteFile(m+"/ctl", []byte("evict"), 0), unix.EBUSY)
	a, errA := os.Stat(one)
	b, errB := os.Stat(two)
	if errA != nil || errB != nil || !os.SameFile(a, b) {
		t.Errorf("the names are of two files: %v %v", errA, errB)
	}
	if err := os.Remove(two); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m+"/ctl", []byte("evict"), 0); err != nil {
		t.Error(err)
	}
	want(t, m+"/state", "cold\n")
}
