package fs

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEvict sends a model back to SOURCE and reads it again, while a reader that
// had it open keeps its bytes.
func TestEvict(t *testing.T) {
	dir := t.TempDir()
	s := mount(t, func(o *Options) { o.Source = dir })
	m, whole := loaded(t, s), string(smallModel(t))
	ctl := func(command string) error { return os.WriteFile(m+"/ctl", []byte(command), 0) }
	old, err := os.Open(filepath.Join(s.out, "m.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := ctl("pin"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "evicting a pinned model", ctl("evict"), unix.EBUSY)
	want(t, m+"/state", "loaded\n")
	for _, command := range []string{"unpin", "evict"} {
		if err := ctl(command); err != nil {
			t.Fatal(command, err)
		}
	}
	want(t, m+"/state", "cold\n")
	want(t, m+"/generation", "1\n")
	want(t, filepath.Join(dir, "m.gguf"), whole)
	if b, err := io.ReadAll(old); err != nil || string(b) != whole {
		t.Errorf("the reader lost its bytes: %v", err)
	}
	want(t, m+"/tensors/a/data", "0123456789abcdef")
	want(t, m+"/state", "loaded\n")
	want(t, m+"/generation", "1\n")
	want(t, filepath.Join(s.out, "m.gguf"), whole)
}

func TestEvictWithoutSource(t *testing.T) {
	s := mount(t)
	wantErr(t, "evicting without SOURCE", os.WriteFile(loaded(t, s)+"/ctl", []byte("evict"), 0), unix.EOPNOTSUPP)
}
