package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/moby/sys/mountinfo"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"vbootfs/shm"
	"vbootfs/vectorboot"
)

// fsType is what findmnt shows after "fuse.".
const fsType = "vbootfs"

// maxReply is how many bytes go into one READ or WRITE: as many as the kernel
// takes unless /proc/sys/fs/fuse/max_pages_limit was raised.
const maxReply = 1 << 20

// Options says what to mount where.
type Options struct {
	Source     string // directory, or "none" for memory only
	Mountpoint string
	Limit      int64  // bytes of shared memory; 0 = half of the machine's memory
	SegmentDir string // directory that holds segment stores; "" = the default of package shm
	AllowOther bool   // other users may use the mount; permissions are always checked
	ReadOnly   bool
	Flags      uintptr           // MS_NOEXEC, MS_NOATIME, ... for a mount by root
	NoPass     bool              // no passthrough even if the kernel allows it
	Policy     vectorboot.Policy // guards of new models
	History    int64             // bytes kept of old generations; 0 = a 16th of the limit, negative = none
	Log        *logrus.Logger

	// For tests, which are programs and daemon in one:
	noPoll    bool // programs that poll are told at once that files are ready
	oldKernel bool // names are forgotten one by one, as if the kernel had no epochs
}

// Mount is a mounted file system with its runtime.
type Mount struct {
	o      Options
	rt     *vectorboot.Runtime
	store  *shm.Store
	source *vectorboot.Source
	done   chan struct{}
	once   sync.Once // guards the work of close
	err    error
	failed bool // it never answered; set before close
}

// ErrMounted says that the mountpoint shows a living vbootfs already.
var ErrMounted = errors.New("already mounted")

// New mounts and begins to serve. When it returns, the mount answers.
func New(o Options) (*Mount, error) {
	if err := absolute(&o); err != nil {
		return nil, err
	}
	if err := clearStale(o.Mountpoint, o.Log); err != nil {
		return nil, err
	}
	m := &Mount{o: o, done: make(chan struct{})}
	if err := m.open(); err != nil {
		return nil, m.giveUp(err)
	}
	if err := m.mount(); err != nil {
		return nil, m.giveUp(fmt.Errorf("mount %s: %w", o.Mountpoint, err))
	}
	readAhead(o.Mountpoint)
	return m, nil
}

// mount puts the tree where the user wants it and begins to answer.
func (m *Mount) mount() error {
	fd, err := attach(m.o)
	if err != nil {
		return err
	}
	f := newFS(m.rt, m.o)
	if f.dev, err = connect(f, fd, m.o.Log); err != nil {
		return errors.Join(err, unmount(m.o.Mountpoint, true))
	}
	if m.o.oldKernel {
		f.dev.minor = epochMinor - 1
	}
	f.dev.covered.watch(m.o.Mountpoint)
	f.probe()
	go func() {
		f.dev.serve()
		f.releaseAll()
		close(m.done)
	}()
	if m.o.noPoll {
		return refusePoll(m.o.Mountpoint)
	}
	return nil
}

// refusePoll makes the kernel ask whether a file is ready, and hear that it need
// not ask again.
func refusePoll(dir string) error {
	fd, err := unix.Open(filepath.Join(dir, "vector_boot/version"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err
}

// readAhead lets the kernel ask for as much at once as a reply can hold, where it
// would ask for 128 KiB. Only root may say so; without it reading is slower.
func readAhead(dir string) {
	found, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	if err != nil || len(found) == 0 {
		return
	}
	top := found[len(found)-1]
	name := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", top.Major, top.Minor)
	_ = os.WriteFile(name, strconv.AppendInt(nil, maxReply>>10, 10), 0)
}

func absolute(o *Options) (err error) {
	if o.Mountpoint, err = filepath.Abs(o.Mountpoint); err != nil {
		return err
	}
	if o.Source == "none" {
		return nil
	}
	if o.Source, err = filepath.Abs(o.Source); err != nil {
		return err
	}
	st, err := os.Stat(o.Source)
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("%s: %w", o.Source, unix.ENOTDIR)
	}
	return err
}

// clearStale detaches a mount of ours whose daemon died, and refuses one that lives.
func clearStale(dir string, log *logrus.Logger) error {
	found, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	if err != nil || len(found) == 0 || found[0].FSType != "fuse."+fsType {
		return nil
	}
	var st unix.Statfs_t // stat(2) may be answered from the kernel's cache
	if err := unix.Statfs(dir, &st); !errors.Is(err, unix.ENOTCONN) {
		return fmt.Errorf("%s: %w", dir, ErrMounted)
	}
	log.WithField("mountpoint", dir).Warn("detaching the mount of a daemon that died")
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return fusermount("-uz", dir)
	}
	return nil
}

// identity names the store: the same SOURCE, or without one the same mountpoint,
// finds its segments again.
func identity(o Options) (string, error) {
	if o.Source == "none" {
		return "mem-" + strconv.FormatUint(xxhash.Sum64String(o.Mountpoint), 16), nil
	}
	var st unix.Stat_t
	if err := unix.Stat(o.Source, &st); err != nil {
		return "", fmt.Errorf("%s: %w", o.Source, err)
	}
	return fmt.Sprintf("dir-%x-%x", st.Dev, st.Ino), nil
}

// open brings up what lies below the mount.
func (m *Mount) open() error {
	id, err := identity(m.o)
	if err != nil {
		return err
	}
	if m.store, err = shm.Open(shm.Config{ID: id, Limit: m.o.Limit, Base: m.o.SegmentDir}); err != nil {
		return err
	}
	if m.o.Source != "none" {
		if m.source, err = vectorboot.OpenSource(m.o.Source, m.store, m.o.ReadOnly); err != nil {
			return err
		}
	}
	m.rt = vectorboot.New(m.store, m.source)
	m.rt.SetDefaultPolicy(m.o.Policy)
	if m.o.History != 0 {
		m.rt.SetHistory(max(0, m.o.History))
	}
	damaged, err := m.rt.Mend()
	for _, d := range damaged {
		m.o.Log.Warn(d)
	}
	if err != nil {
		return err
	}
	if m.source != nil {
		if err := m.source.Start(m.store.Attached); err != nil {
			return err
		}
	}
	return m.rt.Recover()
}

// giveUp undoes a start that failed.
func (m *Mount) giveUp(err error) error {
	m.failed = true
	return errors.Join(err, m.close())
}

// close undoes open, once. Segments that SOURCE does not have, or that a start
// which failed has found, stay for the next start.
func (m *Mount) close() error {
	m.once.Do(func() {
		if m.rt != nil {
			m.rt.Close()
		}
		if m.source != nil {
			m.err = m.source.Close()
		}
		switch {
		case m.store == nil:
		case m.err != nil, m.failed && m.store.Attached:
			m.store.Abandon()
		default:
			m.err = m.store.Close()
		}
	})
	return m.err
}

// debugWriter passes what go-fuse logs on to the log.
type debugWriter struct{ log *logrus.Logger }

func (w debugWriter) Write(p []byte) (int, error) {
	w.log.Debug(string(bytes.TrimSpace(p)))
	return len(p), nil
}

// panicHandler keeps one bad request from ending the daemon. In tests a panic is
// a failure all the same: they read the log.
func panicHandler(log *logrus.Logger) func(any) fuse.Status {
	return func(v any) fuse.Status {
		log.WithField("stack", string(debug.Stack())).Errorf("panic: %v", v)
		return fuse.EIO
	}
}

// Wait returns when the file system has been unmounted and everything is written
// back and removed.
func (m *Mount) Wait() error {
	<-m.done
	return m.close()
}

// drain is how long an unmount waits for programs that still use the mount.
const drain = 3 * time.Second

// Unmount detaches the file system: at once when nobody uses it; otherwise it
// disappears from the tree, and after a pause those who still have files open
// keep only what passthrough gives them. Wait completes it.
func (m *Mount) Unmount(ctx context.Context) error {
	err := unmount(m.o.Mountpoint, false)
	if err == nil {
		<-m.done
		return m.Wait()
	}
	if lazy := unmount(m.o.Mountpoint, true); lazy != nil {
		select {
		case <-m.done: // somebody else has unmounted it
			return m.close()
		default:
			return errors.Join(err, lazy)
		}
	}
	m.o.Log.Warn("the mount is in use: detached it")
	m.rt.EndStreams() // those who only wait let go at once
	select {
	case <-m.done:
	case <-time.After(drain):
	case <-ctx.Done():
	}
	return m.close()
}

func unmount(dir string, lazy bool) error {
	if unix.Geteuid() != 0 {
		if lazy {
			return fusermount("-uz", dir)
		}
		return fusermount("-u", dir)
	}
	if lazy {
		return unix.Unmount(dir, unix.MNT_DETACH)
	}
	return unix.Unmount(dir, 0)
}

// fusermount unmounts what the setuid helper mounted.
func fusermount(flag, dir string) error {
	out, err := exec.Command("fusermount3", flag, "--", dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fusermount3 %s %s: %w: %s", flag, dir, err, bytes.TrimSpace(out))
	}
	return nil
}
