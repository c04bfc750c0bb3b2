package vectorboot

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vbootfs/shm"
)

// settle makes SOURCE equal to the live tree at p and, when asked, durable. Caller holds one.
func (s *Source) settle(p string, durable bool) error {
	if err := s.carry(); err != nil && s.waits(p) {
		return fmt.Errorf("a rename comes first: %w", err)
	}
	n, err := s.live.Walk(p)
	if err != nil && gone(err) == nil {
		return s.drop(p, durable)
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

// drop removes what SOURCE has at a name that is gone.
func (s *Source) drop(p string, durable bool) error {
	if err := s.root.removeAll(p, s.spare); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.errs, p) // nobody is left to be told
	s.mu.Unlock()
	if !durable {
		return nil
	}
	for p = path.Dir(p); ; p = path.Dir(p) { // directories above may be gone, too
		if err := s.syncDirs(p); err == nil || gone(err) != nil || p == "." {
			return err
		}
	}
}

// parents makes the directories above p as they are in the live tree; those that
// have another name there by now are made for a rename that waits.
func (s *Source) parents(p string) error {
	dir := path.Dir(p)
	if dir == "." {
		return nil
	}
	if _, st, err := s.root.stat(dir); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	if err := s.parents(dir); err != nil {
		return err
	}
	n, err := s.live.Walk(dir)
	if err != nil && gone(err) == nil {
		return s.root.mkdir(dir, 0o700)
	}
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
	_, st, err := s.root.stat(p)
	if err != nil || st.Mode&unix.S_IFMT == n.Type {
		return nil
	}
	return s.root.removeAll(p, s.spare)
}

// content brings the content and attributes of one name over.
func (s *Source) content(p string, n *shm.Node, durable bool) error {
	st, err := n.Stat()
	if err != nil {
		return err
	}
	switch n.Type {
	case unix.S_IFREG:
		if id, cold := s.coldID(n); cold {
			err = s.settleCold(p, n, &st, id)
		} else if !s.clean(p, n) && !s.equal(p, n, &st) {
			return s.copyOut(p, n, &st, durable)
		}
	case unix.S_IFDIR:
		err = s.make(p, n, func(q string) error { return s.root.mkdir(q, 0o700) })
	case unix.S_IFLNK:
		return s.symlink(p, n, &st)
	case unix.S_IFIFO, unix.S_IFSOCK:
		err = s.make(p, n, func(q string) error { return s.root.mknod(q, st.Mode) })
	default:
		return nil // device nodes stay in memory
	}
	if err != nil {
		return err
	}
	return s.attributes(p, n, &st)
}

// make makes something for a live name, unless something is there: in workDir, so
// that nobody can put something else in its place before it is known. Without
// privilege nothing can be given away by that, and a directory inherits its group.
func (s *Source) make(p string, n *shm.Node, in func(q string) error) error {
	if _, _, err := s.root.stat(p); err == nil || gone(err) != nil {
		return err
	}
	if unix.Geteuid() != 0 {
		return in(p)
	}
	tmp := s.workName()
	if err := in(tmp); err != nil {
		return err
	}
	id, _, err := s.root.stat(tmp)
	if err == nil {
		s.know(n, id)
		err = s.root.renameFree(tmp, p)
	}
	if err != nil {
		_ = s.root.remove(tmp)
	}
	return err
}

func (s *Source) symlink(p string, n *shm.Node, st *unix.Stat_t) error {
	target, err := n.Readlink()
	if err != nil {
		return err
	}
	if have, err := s.root.readlink(p); err != nil || have != string(target) {
		_ = s.root.remove(p)
		if err := s.root.symlink(string(target), p); err != nil {
			return err
		}
	}
	if unix.Geteuid() == 0 {
		return s.root.lchown(p, int(st.Uid), int(st.Gid))
	}
	return nil
}

// attributes sets owner, mode, extended attributes and times of p.
func (s *Source) attributes(p string, n *shm.Node, st *unix.Stat_t) error {
	fd, err := s.root.open(p, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	id, have, err := identify(fd)
	if err != nil {
		return err
	}
	if !s.ours(n, st, id, &have) {
		return fmt.Errorf("somebody else has put something in the place of %s in SOURCE: %w", p, unix.EEXIST)
	}
	if n.Type != unix.S_IFREG {
		s.know(n, id)
	}
	return s.dress(fd, n, st)
}

// dress gives a file of SOURCE, which may be open with O_PATH, the attributes of a live file.
func (s *Source) dress(fd int, n *shm.Node, st *unix.Stat_t) error {
	if unix.Geteuid() == 0 {
		if err := unix.Fchownat(fd, "", int(st.Uid), int(st.Gid), unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if err := unix.Chmod(viaProc(fd), st.Mode&0o7777); err != nil {
		return err
	}
	if err := s.copyXattrs(fd, n); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, viaProc(fd), []unix.Timespec{st.Atim, st.Mtim}, 0)
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
		switch err := unix.Setxattr(viaProc(fd), name, val[:k], 0); err {
		case nil, unix.ENOTSUP:
		case unix.ENOSPC, unix.E2BIG, unix.ERANGE: // ext4 holds 4 KiB of them; the bytes go all the same
			s.report(Event{Event: "writeback_failed", Error: oneLine("SOURCE has no room for an attribute: " + name)})
		default:
			return err
		}
	}
	buf := make([]byte, 64<<10)
	k, err := unix.Listxattr(viaProc(fd), buf)
	if err != nil {
		return nil
	}
	for _, name := range strings.Split(string(buf[:k]), "\x00") {
		if strings.HasPrefix(name, "user.") && !want[name] {
			if err := unix.Removexattr(viaProc(fd), name); err != nil && err != unix.ENODATA {
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
		if err := s.linkTo(p, q); err != nil && gone(err) != nil {
			return err
		}
	}
	return nil
}

// copyNew copies until no commit came in between; the last time commits wait.
// Without fsync it is put off until they have stopped.
func (s *Source) copyNew(p string, n *shm.Node, st *unix.Stat_t, now bool) error {
	for try := 1; ; try++ {
		changed, err := s.copyOnce(p, n, st, now, try > patience)
		if !changed || err != nil {
			return err
		}
		if !now {
			s.MarkLater(p)
			return nil
		}
		if *st, err = n.Stat(); err != nil {
			return err
		}
	}
}

// copyOnce reports whether the file changed while it was copied: then the copy is
// thrown away. alone makes commits wait.
func (s *Source) copyOnce(p string, n *shm.Node, st *unix.Stat_t, now, alone bool) (changed bool, err error) {
	s.calm.Lock() // a commit marks the file again, before it changes anything
	defer s.calm.Unlock()
	s.notes.clear(n.Ino)
	tmp := s.workName()
	if !alone {
		s.calm.Unlock()
	}
	id, err := s.copyTo(tmp, n, st)
	if !alone {
		s.calm.Lock()
	}
	busy := s.Busy(n.Ino)
	changed = !alone && s.notes.isDirty(n.Ino)
	if err == nil && (now || !busy) && !changed {
		if err = s.spare(p); err == nil {
			err = s.root.rename(tmp, p, 0)
		}
		if err == nil {
			s.know(n, id)
		}
	}
	if err != nil || busy || changed { // busy: who has it mapped may store more
		s.Dirty(n)
		_ = s.root.remove(tmp) // gone if it took the name
	}
	return changed && (now || !busy), err
}

// copyTo makes a file of SOURCE with the bytes and attributes of a live one, on the disk.
func (s *Source) copyTo(tmp string, n *shm.Node, st *unix.Stat_t) (identity, error) {
	f, err := s.root.create(tmp)
	if err != nil {
		return identity{}, err
	}
	defer f.Close()
	if err := s.copyBytes(f, n, st); err != nil {
		return identity{}, err
	}
	if err := s.dress(int(f.Fd()), n, st); err != nil {
		return identity{}, err
	}
	id, _, err := identify(int(f.Fd()))
	if err != nil {
		return id, err
	}
	return id, f.Sync()
}

func (s *Source) copyBytes(f *os.File, n *shm.Node, st *unix.Stat_t) error {
	in, err := n.Quiet()
	if err != nil {
		return err
	}
	defer in.Close()
	// What is cut off meanwhile is marked again by whoever did it.
	_, err = io.Copy(f, io.NewSectionReader(in, 0, st.Size))
	return err
}

// equal reports whether SOURCE has the very bytes of a file that is dirty for no
// other reason than that somebody could have stored to it through a mapping.
func (s *Source) equal(p string, n *shm.Node, st *unix.Stat_t) bool {
	if _, ok := s.alike(p, n); !ok || s.Busy(n.Ino) {
		return false
	}
	s.calm.Lock()
	s.notes.clear(n.Ino)
	s.calm.Unlock()
	if s.sameBytes(p, n, st) {
		return true
	}
	s.Dirty(n)
	return false
}

func (s *Source) sameBytes(p string, n *shm.Node, st *unix.Stat_t) bool {
	a, _, err := s.root.file(p)
	if err != nil {
		return false
	}
	defer a.Close()
	b, err := n.Quiet()
	if err != nil {
		return false
	}
	defer b.Close()
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < st.Size; off += int64(len(x)) {
		i, _ := a.ReadAt(x, off)
		j, _ := b.ReadAt(y, off)
		if i != j || i == 0 || !bytes.Equal(x[:i], y[:j]) {
			return false
		}
	}
	return true
}

// linkTo makes p another name of what SOURCE has at q, replacing what p was.
func (s *Source) linkTo(q, p string) error {
	tmp := s.workName()
	if err := s.root.link(q, tmp); err != nil {
		return err
	}
	defer s.root.remove(tmp) // rename(2) of two names of one file leaves both
	if err := s.spare(p); err != nil {
		return err
	}
	return s.root.rename(tmp, p, 0)
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
		if err := s.root.sync(dir); err != nil || dir == "." {
			return err
		}
		dir = path.Dir(dir)
	}
}
