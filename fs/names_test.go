package fs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// go-fuse answers for a name of its own in the root, which is none of ours.
func TestNoNamesButOurs(t *testing.T) {
	s := mount(t)
	name := filepath.Join(s.mnt, ".go-fuse-epoll-hack")
	if _, err := os.Lstat(name); !errors.Is(err, unix.ENOENT) {
		t.Errorf("stat: %v", err)
	}
	if f, err := os.Open(name); !errors.Is(err, unix.ENOENT) {
		t.Errorf("open: %v", err)
		f.Close()
	}
	if f, err := os.Create(name); !errors.Is(err, unix.EPERM) {
		t.Errorf("create: %v", err)
		f.Close()
	}
	wantErr(t, "mkdir", os.Mkdir(name, 0o755), unix.EPERM)
	wantErr(t, "rename", os.Rename(name, name+"2"), unix.ENOENT)
}
