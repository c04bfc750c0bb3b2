package fs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
)

// tiny is a model with one tensor per name.
func tiny(t *testing.T, names ...string) []byte {
	t.Helper()
	s := ggufview.Spec{KV: []ggufview.SpecKV{{Key: "general.architecture", Value: "test"}}}
	for i, name := range names {
		s.Tensors = append(s.Tensors, ggufview.SpecTensor{Name: name, Type: ggufview.I8, NE: []int64{4}, Data: []byte{1, 2, 3, byte(i)}})
	}
	var b bytes.Buffer
	if _, err := s.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRowAttributes(t *testing.T) {
	s := mount(t)
	write(t, filepath.Join(s.out, "a.gguf"), tiny(t, "w/1"))
	dir := filepath.Join(s.vb, "models/a.gguf/tensors/w%2F1")
	list := make([]byte, 1<<10)
	n, err := unix.Listxattr(dir, list)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, name := range strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		val := make([]byte, 100)
		n, err := unix.Getxattr(dir, name, val)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got[name] = string(val[:n])
	}
	offset := strings.TrimSpace(read(t, dir+"/offset"))
	want := map[string]string{"user.gguf.type": "I8", "user.gguf.shape": "4", "user.gguf.nbytes": "4", "user.gguf.offset": offset}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for name, want := range map[string]error{"user.other": unix.ENODATA, "security.selinux": unix.ENOTSUP, "system.posix_acl_access": unix.ENOTSUP} {
		if _, err := unix.Getxattr(dir, name, nil); err != want {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}

// The kernel keeps what belongs to a generation, names and attributes; nothing of
// it is shown for the next one, nor for another model of that name.
func TestCachedDirectories(t *testing.T) {
	s := mount(t)
	file, dir := filepath.Join(s.out, "a.gguf"), filepath.Join(s.vb, "models/a.gguf/tensors")
	look := func(want ...string) {
		t.Helper()
		for range 2 { // from the daemon, then from the kernel
			ents, err := os.ReadDir(dir)
			if err != nil || len(ents) != len(want) {
				t.Fatalf("%v %v, want %v", ents, err, want)
			}
			for i, e := range ents {
				data := read(t, filepath.Join(dir, e.Name(), "data"))
				if e.Name() != want[i] || data[3] != byte(i) {
					t.Errorf("%s has the data %q", e.Name(), data)
				}
			}
		}
	}
	write(t, file, tiny(t, "a"))
	look("a")
	held, err := os.Open(filepath.Join(dir, "a/data"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	write(t, file, tiny(t, "a", "b"))
	look("a", "b")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	write(t, file, tiny(t, "c"))
	look("c")
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{"": 0o500, "c": 0o500, "c/data": 0o600, "c/type": 0o400} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("after chmod 600 %q has the mode %v, want %v: %v", name, st.Mode(), want, err)
		}
	}
}
