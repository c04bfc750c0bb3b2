package vectorboot

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vbootfs/shm"
)

type unixStat = syscall.Stat_t

// settle makes SOURCE equal to the live tree at p and, when asked, durable.
func (s *Source) settle(p string, durable bool) error {
	s.one.Lock()
	defer s.one.Unlock()
	n, err := s.live.Walk(p)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return s.gone(p, durable)
	}
	if err != nil {
		return err
	}
	defer n.Close()
	if err := s.parents(p); err != nil {
		return err
	}
	if err := s.retype(p, n); err != nil {
		return err
	}
	if err := s.content(p, n, durable); err != nil {
		return err
	}
	if durable || n.Type == unix.S_IFREG {
		return s.syncDirs(path.Dir(p))
	}
	return nil
}

func (s *Source) gone(p string, durable bool) error {
	if err := s.root.RemoveAll(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if durable {
		return s.syncDirs(path.Dir(p))
	}
	return nil
}

// parents makes the directories above p as they are in the live tree.
func (s *Source) parents(p string) error {
	dir := path.Dir(p)
	if dir == "." {
		return nil
	}
	if info, err := s.root.Lstat(dir); err == nil && info.IsDir() {
		return nil
	}
	if err := s.parents(dir); err != nil {
		return err
	}
	n, err := s.live.Walk(dir)
	if err != nil {
		return err
	}
	defer n.Close()
	if err := s.retype(dir, n); err != nil {
		return err
	}
	return s.content(dir, n, true)
}

// retype removes what stands at p in SOURCE when it is of another kind.
func (s *Source) retype(p string, n *shm.Node) error {
	info, err := s.root.Lstat(p)
	if err != nil || info.Sys().(*unixStat).Mode&unix.S_IFMT == n.Type {
		return nil
	}
	return s.root.RemoveAll(p)
}

// content brings the content and attributes of one name over.
func (s *Source) content(p string, n *shm.Node, durable bool) error {
	st, err := n.Stat()
	if err != nil {
		return err
	}
	switch n.Type {
	case unix.S_IFREG:
		if !s.IsCold(n) && !s.clean(p, n) {
			return s.copyOut(p, n, &st, durable)
		}
	case unix.S_IFDIR:
		if err := s.root.Mkdir(p, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case unix.S_IFLNK:
		return s.symlink(p, n, &st)
	case unix.S_IFIFO, unix.S_IFSOCK:
		if err := s.special(p, st.Mode); err != nil {
			return err
		}
	default:
		return nil // device nodes stay in memory
	}
	return s.attributes(p, n, &st)
}

func (s *Source) symlink(p string, n *shm.Node, st *unix.Stat_t) error {
	target, err := n.Readlink()
	if err != nil {
		return err
	}
	if have, err := s.root.Readlink(p); err != nil || have != string(target) {
		_ = s.root.Remove(p)
		if err := s.root.Symlink(string(target), p); err != nil {
			return err
		}
	}
	if unix.Geteuid() == 0 {
		return s.root.Lchown(p, int(st.Uid), int(st.Gid))
	}
	return nil
}

func (s *Source) special(p string, mode uint32) error {
	dir, err := s.root.Open(path.Dir(p))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Mknodat(int(dir.Fd()), path.Base(p), mode, 0); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}

// attributes sets owner, mode, extended attributes and times of p.
func (s *Source) attributes(p string, n *shm.Node, st *unix.Stat_t) error {
	f, err := s.root.OpenFile(p, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENXIO) { // a socket cannot be opened
		return s.root.Chmod(p, fs.FileMode(st.Mode&0o777))
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return s.dress(f, n, st)
}

// dress gives an open file of SOURCE the attributes of a live file.
func (s *Source) dress(f *os.File, n *shm.Node, st *unix.Stat_t) error {
	fd := int(f.Fd())
	if unix.Geteuid() == 0 {
		if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return err
	}
	if err := s.copyXattrs(fd, n); err != nil {
		return err
	}
	ts := []unix.Timespec{st.Atim, st.Mtim}
	return unix.UtimesNanoAt(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), ts, 0)
}

// copyXattrs makes the user attributes of fd those of n. A SOURCE without
// extended attributes keeps none.
func (s *Source) copyXattrs(fd int, n *shm.Node) error {
	want := map[string]bool{}
	list, err := n.Listxattr()
	if err != nil {
		return nil
	}
	for _, name := range strings.Split(string(list), "\x00") {
		if name == "" || s.store.IsMark(name) {
			continue
		}
		want[name] = true
		val := make([]byte, 64<<10)
		k, err := n.Getxattr(name, val)
		if err != nil {
			continue
		}
		if err := unix.Fsetxattr(fd, name, val[:k], 0); err != nil && err != unix.ENOTSUP {
			return err
		}
	}
	buf := make([]byte, 64<<10)
	k, err := unix.Flistxattr(fd, buf)
	if err != nil {
		return nil
	}
	for _, name := range strings.Split(string(buf[:k]), "\x00") {
		if strings.HasPrefix(name, "user.") && !want[name] {
			if err := unix.Fremovexattr(fd, name); err != nil && err != unix.ENODATA {
				return err
			}
		}
	}
	return nil
}

// copyOut writes a file to workDir, syncs it and renames it to p. The dirty mark
// goes first: a write that comes during the copy sets it again. Unless fsync
// asks for the bytes of this moment (now), a file that is open for writing is
// left to its last close, which marks it again.
//
// Hard links of the live tree are hard links in SOURCE: a name of a file that
// SOURCE has under another name is linked, and after a copy the other names follow.
func (s *Source) copyOut(p string, n *shm.Node, st *unix.Stat_t, now bool) error {
	if !now && s.Busy(n.Ino) {
		return nil
	}
	others, err := s.others(p, n, st)
	if err != nil {
		return err
	}
	for _, q := range others {
		if s.clean(q, n) {
			return s.linkTo(q, p)
		}
	}
	if err := s.copyNew(p, n, st, now); err != nil {
		return err
	}
	for _, q := range others {
		if err := s.linkTo(p, q); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (s *Source) copyNew(p string, n *shm.Node, st *unix.Stat_t, now bool) error {
	_ = n.Removexattr(s.dirty)
	tmp := s.workName()
	f, err := s.root.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		s.Dirty(n)
		return err
	}
	defer f.Close()
	if err = s.copyBytes(f, n, st); err == nil {
		err = f.Sync()
	}
	torn := !now && s.Busy(n.Ino)
	if err == nil && !torn {
		err = s.root.Rename(tmp, p)
	}
	if err != nil || torn {
		s.Dirty(n)
		_ = s.root.Remove(tmp)
	}
	return err
}

func (s *Source) copyBytes(f *os.File, n *shm.Node, st *unix.Stat_t) error {
	buf := make([]byte, 1<<20)
	for off := int64(0); off < st.Size; {
		k, err := n.ReadAt(buf[:min(int64(len(buf)), st.Size-off)], off)
		if k == 0 && err != nil {
			break // cut meanwhile: the mark is set again by whoever did it
		}
		if _, err := f.WriteAt(buf[:k], off); err != nil {
			return err
		}
		off += int64(k)
	}
	return s.dress(f, n, st)
}

// linkTo makes p another name of what SOURCE has at q, replacing what p was.
func (s *Source) linkTo(q, p string) error {
	tmp := s.workName()
	if err := s.root.Link(q, tmp); err != nil {
		return err
	}
	defer s.root.Remove(tmp) // rename(2) of two names of one file leaves both
	return s.root.Rename(tmp, p)
}

// others lists the other names that a live file has.
func (s *Source) others(p string, n *shm.Node, st *unix.Stat_t) (names []string, err error) {
	if st.Nlink < 2 {
		return nil, nil
	}
	err = Walk(s.live, ".", func(q string, o *shm.Node) {
		if o.Ino == n.Ino && q != p {
			names = append(names, q)
		}
	})
	return names, err
}

// workName is a new name in workDir. Caller holds one.
func (s *Source) workName() string {
	s.tmp++
	return path.Join(workDir, strconv.FormatUint(s.tmp, 10))
}

// syncDirs makes a directory and those above it durable.
func (s *Source) syncDirs(dir string) error {
	for {
		d, err := s.root.Open(dir)
		if err != nil {
			return err
		}
		err = d.Sync()
		d.Close()
		if err != nil || dir == "." {
			return err
		}
		dir = path.Dir(dir)
	}
}
