package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// A disk that fails on command: an ext4 on a loop device over a file of a small
// FUSE file system, which notes each write and flush in a log. It is a process of
// its own, this test program again (diskEnv).
const diskEnv = "VBOOTFS_TEST_DISK"

// blockDisk is the FUSE side: DIR/image is the disk, DIR/ctl takes commands:
//
//	fail reads|writes|flushes    they end with EIO from now on
//	stall reads|writes|flushes   they wait until heal
//	heal                         everything works
//	save CUT SEED FILE           the disk as a power failure after CUT records leaves it
type blockDisk struct {
	fs.Inode

	mu      sync.Mutex // guards all below
	heal    *sync.Cond
	image   []byte
	log     []record
	failing map[string]bool
	stalled map[string]bool
}

// record is a write, or a flush if data is nil.
type record struct {
	off  int64
	data []byte
}

// disk serves a copy of an image file at a directory until it is unmounted.
func disk(dir string) int {
	image, err := os.ReadFile(dir + ".img")
	if err == nil {
		d := &blockDisk{image: image, failing: map[string]bool{}, stalled: map[string]bool{}}
		d.heal = sync.NewCond(&d.mu)
		var s *fuse.Server
		if s, err = fs.Mount(dir, d, &fs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "disk"}}); err == nil {
			fmt.Println("ready")
			s.Wait()
			return 0
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func (d *blockDisk) OnAdd(ctx context.Context) {
	for i, n := range []fs.InodeEmbedder{&imageFile{d: d}, &controlFile{d: d}} {
		d.AddChild([]string{"image", "ctl"}[i], d.NewPersistentInode(ctx, n, fs.StableAttr{}), true)
	}
}

// pass waits while requests of a kind are stalled, and fails when they fail.
// Caller holds mu.
func (d *blockDisk) pass(kind string) syscall.Errno {
	for d.stalled[kind] {
		d.heal.Wait()
	}
	if d.failing[kind] {
		return syscall.EIO
	}
	return 0
}

// imageFile is the disk.
type imageFile struct {
	fs.Inode
	d *blockDisk
}

func (f *imageFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o600, uint64(len(f.d.image))
	return 0
}

func (f *imageFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *imageFile) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if no := f.d.pass("reads"); no != 0 {
		return nil, no
	}
	n := copy(p, f.d.image[min(off, int64(len(f.d.image))):])
	return fuse.ReadResultData(p[:n]), 0
}

func (f *imageFile) Write(_ context.Context, _ fs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if no := f.d.pass("writes"); no != 0 {
		return 0, no
	}
	copy(f.d.image[off:], p)
	f.d.log = append(f.d.log, record{off, bytes.Clone(p)})
	return uint32(len(p)), 0
}

func (f *imageFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if no := f.d.pass("flushes"); no != 0 {
		return no
	}
	f.d.log = append(f.d.log, record{})
	return 0
}

// controlFile takes commands; reading it gives the number of records.
type controlFile struct {
	fs.Inode
	d *blockDisk
}

func (f *controlFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = 0o600
	return 0
}

func (f *controlFile) Setattr(_ context.Context, _ fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return f.Getattr(context.Background(), nil, out)
}

func (f *controlFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *controlFile) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	text := strconv.Itoa(len(f.d.log))
	return fuse.ReadResultData([]byte(text)[min(off, int64(len(text))):]), 0
}

func (f *controlFile) Write(_ context.Context, _ fs.FileHandle, p []byte, _ int64) (uint32, syscall.Errno) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	word := strings.Fields(string(p))
	switch {
	case word[0] == "heal":
		clear(f.d.failing)
		clear(f.d.stalled)
		f.d.heal.Broadcast()
	case word[0] == "fail":
		f.d.failing[word[1]] = true
	case word[0] == "stall":
		f.d.stalled[word[1]] = true
	case word[0] == "save":
		if err := f.d.save(word[1], word[2], word[3]); err != nil {
			return 0, syscall.EIO
		}
	default:
		return 0, syscall.EINVAL
	}
	return uint32(len(p)), 0
}

// save writes what a power failure leaves: of the writes since the last flush
// before the cut some are lost and some torn at a sector, as the seed says. The
// log goes back to the image that the disk began with.
func (d *blockDisk) save(cutText, seedText, name string) error {
	cut, err := strconv.Atoi(cutText)
	seed, err2 := strconv.ParseUint(seedText, 10, 64)
	image, err3 := os.ReadFile(name) // the image at the beginning
	if err := errors.Join(err, err2, err3); err != nil {
		return err
	}
	flushed := 0
	for i, r := range d.log[:cut] {
		if r.data == nil {
			flushed = i
		}
	}
	random := rand.New(rand.NewPCG(seed, 3))
	for i, r := range d.log[:cut] {
		data := r.data
		if i > flushed {
			switch random.IntN(4) {
			case 0:
				data = nil
			case 1:
				data = data[:random.IntN(len(data)/512+1)*512]
			}
		}
		copy(image[r.off:], data)
	}
	return os.WriteFile(name, image, 0o600)
}

// testDisk is a disk as the tests see it.
type testDisk struct {
	t     *testing.T
	dir   string // of image and ctl
	mnt   string // where its ext4 is mounted
	empty string // the image at the beginning
}

// newDisk makes a disk of some MiB with an ext4 on it and mounts that.
func newDisk(t *testing.T, mib int) *testDisk {
	t.Helper()
	d := &testDisk{t: t, dir: filepath.Join(tempDir(t), "disk")}
	d.mnt, d.empty = d.dir+".mnt", d.dir+".img"
	must(t, "mkdir", d.dir, d.mnt)
	must(t, "truncate", "-s", strconv.Itoa(mib)+"M", d.empty)
	must(t, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", d.empty)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), diskEnv+"="+d.dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(d.dir, unix.MNT_DETACH)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the disk: %v", err)
		}
	})
	if n, err := out.Read(make([]byte, 6)); n != 6 {
		t.Fatalf("the disk: %v", err)
	}
	d.attach(filepath.Join(d.dir, "image"))
	return d
}

// attach mounts an image.
func (d *testDisk) attach(image string) {
	d.t.Helper()
	loop := d.loop(image)
	must(d.t, "mount", "-t", "ext4", loop, d.mnt)
	must(d.t, "losetup", "-d", loop) // goes with the mount
	d.t.Cleanup(d.detach)
}

// loop makes a loop device of an image. Another one may take the free device
// meanwhile; losetup looks for the next then.
func (d *testDisk) loop(image string) string {
	d.t.Helper()
	for i := range 64 { // where nodes are not made by themselves
		_ = unix.Mknod("/dev/loop"+strconv.Itoa(i), unix.S_IFBLK|0o660, int(unix.Mkdev(7, uint32(i)))) // most are there
	}
	return strings.TrimSpace(must(d.t, "losetup", "--show", "-f", image))
}

// detach unmounts the ext4, if it is mounted.
func (d *testDisk) detach() {
	d.heal()
	if on, err := mountinfo.Mounted(d.mnt); err != nil || !on {
		return
	}
	if err := unmountSoon(d.mnt); err != nil {
		d.t.Errorf("unmounting the disk: %v", err)
		_ = unix.Unmount(d.mnt, unix.MNT_DETACH)
	}
}

func (d *testDisk) heal() { d.ctl("heal") }

func (d *testDisk) ctl(command string) {
	d.t.Helper()
	write(d.t, filepath.Join(d.dir, "ctl"), []byte(command))
}

// records is how many writes and flushes there were.
func (d *testDisk) records() int {
	d.t.Helper()
	n, err := strconv.Atoi(string(read(d.t, filepath.Join(d.dir, "ctl"))))
	if err != nil {
		d.t.Fatal(err)
	}
	return n
}

// cut is the image that a power failure after some records leaves, as a file.
func (d *testDisk) cut(records int, seed uint64) string {
	d.t.Helper()
	name := filepath.Join(tempDir(d.t), "cut.img")
	must(d.t, "cp", "--sparse=always", d.empty, name)
	d.ctl(fmt.Sprintf("save %d %d %s", records, seed, name))
	return name
}
