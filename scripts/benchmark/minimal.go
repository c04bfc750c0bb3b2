package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"os"
	"os/signal"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// A peer: a file system of files that never change, as small as go-fuse allows,
// in a process of its own.

// still is a file with fixed content.
type still struct {
	gofs.Inode
	data  []byte
	flags uint32 // of each open
}

var _ gofs.NodeOpener = (*still)(nil)
var _ gofs.NodeReader = (*still)(nil)
var _ gofs.NodeGetattrer = (*still)(nil)

func (s *still) Open(context.Context, uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	return nil, s.flags | fuse.FOPEN_NOFLUSH, 0
}

func (s *still) Read(_ context.Context, _ gofs.FileHandle, buf []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	from := min(off, int64(len(s.data)))
	return fuse.ReadResultData(s.data[from:min(from+int64(len(buf)), int64(len(s.data)))]), 0
}

func (s *still) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o444, uint64(len(s.data))
	return 0
}

// childMinimal serves DIR with cached-SIZE and direct-SIZE for each SIZE.
func childMinimal(args []string) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP) // the parent unmounts
	root := &gofs.Inode{}
	hour := time.Hour
	o := &gofs.Options{EntryTimeout: &hour, AttrTimeout: &hour}
	o.MaxWrite, o.DisableSplice, o.DirectMountStrict = 1<<20, true, os.Geteuid() == 0
	o.OnAdd = func(ctx context.Context) {
		for _, s := range args[1:] {
			size, _ := strconv.Atoi(s)
			for name, flags := range map[string]uint32{"cached-": fuse.FOPEN_KEEP_CACHE, "direct-": fuse.FOPEN_DIRECT_IO} {
				n := root.NewPersistentInode(ctx, &still{data: make([]byte, size), flags: flags}, gofs.StableAttr{Mode: syscall.S_IFREG})
				root.AddChild(name+s, n, true)
			}
		}
	}
	srv, err := gofs.Mount(args[0], root, o)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	srv.Wait()
	return nil
}

// minimal mounts the peer and returns its directory; it ends when it is unmounted.
func (b *bench) minimal(sizes ...int) (string, error) {
	b.serial++
	dir := filepath.Join(b.Disk, fmt.Sprintf("minimal%d", b.serial))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(self, "child-minimal", dir)
	for _, s := range sizes {
		cmd.Args = append(cmd.Args, strconv.Itoa(s))
	}
	_, err = startChild(cmd)
	return dir, err
}
