// Package shm keeps files in shared memory: one tree of named files on a tmpfs,
// which processes map directly and which outlives the daemon that filled it.
//
// With CAP_SYS_ADMIN a store is a tmpfs of its own, with a size limit that the
// kernel enforces and huge pages on demand. It is attached once, read-only, so
// that other processes can map what it holds but never write around the daemon:
//
//	ROOT (read-only mount)       what other programs open
//	├── live/   the tree that is shown, with real owners and modes
//	├── stage/  files not shown yet (mode 0700)
//	├── control/  pages that processes talk through (mode 0700)
//	└── notes/    what the next start must know (mode 0700)
//
// The daemon writes through a second, detached mount of the same tmpfs that only
// its descriptor reaches. Without the privilege the same tree is a directory in
// /dev/shm, mode 0700, and the limit is kept by counting writes.
//
// A Store owns its descriptors and, until Close, a lock that refuses a second
// daemon. Close removes everything; a killed daemon leaves the tree in place and
// the next Open with the same identity takes it over.
package shm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ErrInUse says that another process holds the store.
var ErrInUse = errors.New("in use by another vbootfs")

// Config says which store to open.
type Config struct {
	ID    string // identity: same ID, same store; letters, digits and dashes
	Limit int64  // bytes; 0 = half of the machine's memory
	Plain bool   // a directory even where a tmpfs of its own could be mounted
	Names uint64 // files that a tmpfs of its own holds at first; 0 = by Limit
	Most  uint64 // files that Grow may let it hold; 0 = by the machine's memory
	Base  string // directory that holds stores; "" = /run/vbootfs, or /dev/shm/vbootfs-UID without privilege
}

// Store is an open store. Its methods may be called from any goroutine.
type Store struct {
	Root     string // where other processes find the tree
	Private  bool   // a tmpfs of its own: the kernel enforces the limit
	Attached bool   // Open found a tree left by an earlier process
	Live     *Node
	Stage    *Node
	Control  *Node
	Notes    *Node

	limit int64

	names, mostNames uint64 // see Config
	trusted          bool   // marks are attributes that only root sees

	used atomic.Int64 // bytes of files; counted only when !Private

	openMu sync.Mutex     // guards open
	open   map[uint64]int // handles of each regular file; only when !Private

	lock   *os.File
	serial atomic.Uint64

	hugeMu sync.Mutex // guards hugeN; held across the remount
	hugeN  int
}

// Open creates the store or takes over the one that an earlier process left.
func Open(c Config) (*Store, error) {
	if c.Limit <= 0 {
		c.Limit = memTotal() / 2
	}
	priv := unix.Geteuid() == 0 && !c.Plain
	base := c.Base
	if base == "" {
		base = "/run/vbootfs"
		if !priv {
			base = "/dev/shm/vbootfs-" + strconv.Itoa(unix.Geteuid())
		}
	}
	if err := ownDir(base); err != nil {
		return nil, err
	}
	s := &Store{Root: filepath.Join(base, c.ID), limit: c.Limit, names: c.Names, mostNames: c.Most, open: map[uint64]int{}}
	if err := s.acquire(); err != nil {
		return nil, err
	}
	if err := s.bringUp(priv); err != nil {
		s.lock.Close()
		return nil, fmt.Errorf("segment store %s: %w", s.Root, err)
	}
	return s, nil
}

// ownDir makes sure that dir is a directory of ours and not a planted link.
func ownDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if int(st.Uid) != unix.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s: not a directory that only this user can write", dir)
	}
	return nil
}

// acquire takes the lock file beside the root. A lock file that its owner
// unlinked between our open and our flock is tried again.
func (s *Store) acquire() error {
	for {
		f, err := os.OpenFile(s.Root+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return fmt.Errorf("%s: %w", s.Root, ErrInUse)
		}
		var st unix.Stat_t
		if unix.Fstat(int(f.Fd()), &st) == nil && st.Nlink > 0 {
			s.lock = f
			return nil
		}
		f.Close()
	}
}

func (s *Store) bringUp(priv bool) error {
	if err := os.Mkdir(s.Root, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := ownDir(s.Root); err != nil {
		return err
	}
	top := -1
	if priv {
		top = s.mount()
	}
	if top < 0 {
		if err := os.Chmod(s.Root, 0o700); err != nil {
			return err
		}
		fd, err := unix.Open(s.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		top = fd
	}
	defer unix.Close(top)
	var err error
	if s.Live, err = s.subdir(top, "live", 0o755); err != nil {
		return err
	}
	if s.Stage, err = s.subdir(top, "stage", 0o700); err != nil {
		return err
	}
	if s.Control, err = s.subdir(top, "control", 0o700); err != nil {
		return err
	}
	if s.Notes, err = s.subdir(top, "notes", 0o700); err != nil {
		return err
	}
	s.trust()
	if !s.Private {
		s.used.Store(treeBytes(s.Root))
	}
	return nil
}

// subdir opens one of the top directories, making it when it is not there;
// finding it means that an earlier process left it.
func (s *Store) subdir(top int, name string, mode uint32) (*Node, error) {
	err := unix.Mkdirat(top, name, mode)
	if err == unix.EEXIST {
		s.Attached = true
	} else if err != nil {
		return nil, err
	}
	fd, err := unix.Openat(top, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return s.node(fd)
}

// Close removes the tree and what Open made. Files that other processes still
// have open or mapped live until they let go.
func (s *Store) Close() error {
	s.closeDirs()
	var err error
	if s.Private {
		err = unix.Unmount(s.Root, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	if err == nil {
		err = os.RemoveAll(s.Root)
	}
	os.Remove(s.lock.Name())
	os.Remove(filepath.Dir(s.Root)) // succeeds only for the last store
	s.lock.Close()
	return err
}

// Abandon closes the descriptors and leaves the tree, as a killed process would.
func (s *Store) Abandon() {
	s.closeDirs()
	s.lock.Close()
}

func (s *Store) closeDirs() {
	s.Live.Close()
	s.Stage.Close()
	s.Control.Close()
	s.Notes.Close()
}

// Usage returns the bytes in use and the limit.
func (s *Store) Usage() (used, limit int64) {
	if !s.Private {
		return s.used.Load(), s.limit
	}
	st := s.Statfs()
	return int64(st.Blocks-st.Bfree) * st.Bsize, int64(st.Blocks) * st.Bsize
}

// Statfs is what df shows: the limit as size, the memory in use as used.
func (s *Store) Statfs() unix.Statfs_t {
	var st unix.Statfs_t
	if err := unix.Fstatfs(s.Live.fd, &st); err != nil || s.Private {
		return st
	}
	st.Blocks = uint64(s.limit / st.Bsize)
	st.Bfree = uint64(max(0, s.limit-s.used.Load()) / st.Bsize)
	st.Bavail = st.Bfree
	return st
}

// charge counts delta bytes against the limit of a store without a tmpfs of its own.
func (s *Store) charge(delta int64) error {
	if s.Private {
		return nil
	}
	if s.used.Add(delta) > s.limit && delta > 0 {
		s.used.Add(-delta)
		return unix.ENOSPC
	}
	return nil
}

// Mark is the name of an extended attribute for the daemon's own notes on a
// file. With privilege other processes can neither see nor set it.
func (s *Store) Mark(note string) string {
	if s.trusted {
		return "trusted.vbootfs." + note
	}
	return "user.vbootfs-mark." + note
}

// trust finds out whether this process may set trusted attributes: root of a user
// namespace may mount, but not that.
func (s *Store) trust() {
	s.trusted = true
	name := s.Mark("test")
	s.trusted = s.Private && s.Notes.Setxattr(name, []byte("1"), 0) == nil && s.Notes.Removexattr(name) == nil
}

// IsMark reports whether an extended attribute is one of ours.
func (s *Store) IsMark(attr string) bool { return strings.HasPrefix(attr, s.Mark("")) }

// opened counts a handle of a file, and closed its end. Memory of a file without
// a name comes back with its last handle.
func (s *Store) opened(n *Node) {
	if s.Private || n.Type != unix.S_IFREG {
		return
	}
	s.openMu.Lock()
	s.open[n.Ino]++
	s.openMu.Unlock()
}

func (s *Store) closed(n *Node) {
	if s.Private || n.Type != unix.S_IFREG {
		return
	}
	st, err := n.Stat()
	s.openMu.Lock()
	s.open[n.Ino]--
	last := s.open[n.Ino] == 0
	if last {
		delete(s.open, n.Ino)
	}
	s.openMu.Unlock()
	if last && err == nil && st.Nlink == 0 {
		s.used.Add(-st.Blocks * 512)
	}
}

// victim holds what a name stands for while the name is taken away, so that its
// memory is counted back.
func (s *Store) victim(dir *Node, name string) func() {
	if !s.Private {
		if v, err := dir.Lookup(name); err == nil {
			return v.Close
		}
	}
	return func() {}
}

// StageName is a name in Stage that no other file of this process has.
func (s *Store) StageName() string {
	return strconv.Itoa(os.Getpid()) + "-" + strconv.FormatUint(s.serial.Add(1), 10)
}
