package vectorboot

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"vbootfs/shm"
)

// adopt walks SOURCE for names that the live tree has not, and a tree that was
// taken over for names that SOURCE has not.
func (s *Source) adopt(attached bool) error {
	if err := s.adoptDir("."); err != nil {
		return err
	}
	if !attached {
		return nil
	}
	return Walk(s.live, ".", func(p string, n *shm.Node) {
		if s.IsCold(n) {
			return
		}
		if id, ok := s.alike(p, n); ok && !s.notes.isDirty(n.Ino) {
			s.know(n, id)
		} else {
			s.Mark(p)
		}
	})
}

func (s *Source) adoptDir(dir string) error {
	ents, err := s.root.names(dir)
	if err != nil {
		return err
	}
	for _, e := range ents {
		p := path.Join(dir, e.Name())
		if p == workDir {
			continue
		}
		n, err := s.live.Walk(p)
		switch {
		case err == nil:
			n.Close()
		case s.notes.isGone(p):
			s.Mark(p)
			continue
		default:
			if err := s.mirrorGrowing(p); err != nil {
				return fmt.Errorf("SOURCE %s: %w", p, err)
			}
		}
		if e.IsDir() {
			if err := s.adoptDir(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// reunite finds the bytes of cold names that SOURCE has somewhere else: the daemon
// was killed in the middle of a rename, or somebody has changed SOURCE since. A
// name whose bytes are nowhere becomes what SOURCE has under it.
//
// All that is found gets a name in workDir before anything is replaced: two names
// may have each other's bytes.
func (s *Source) reunite() error {
	lost := map[identity][]string{}
	err := Walk(s.live, ".", func(p string, n *shm.Node) {
		if want, cold := s.coldID(n); cold {
			if id, _, err := s.root.stat(p); err != nil || id != want {
				lost[want] = append(lost[want], p)
			}
		}
	})
	if err != nil || len(lost) == 0 {
		return err
	}
	if err := s.search(".", lost); err != nil {
		return err
	}
	for id, names := range lost {
		for _, p := range names {
			if err := s.restore(p, id); err != nil {
				return err
			}
		}
	}
	return nil
}

// search keeps what it finds of the files that names want.
func (s *Source) search(dir string, lost map[identity][]string) error {
	ents, err := s.root.names(dir)
	if err != nil {
		return err
	}
	for _, e := range ents {
		q := path.Join(dir, e.Name())
		if e.IsDir() {
			if err := s.search(q, lost); err != nil {
				return err
			}
			continue
		}
		id, _, err := s.root.stat(q)
		if err != nil || lost[id] == nil {
			continue
		}
		if err := s.keep(q, id, lost[id][0]); err != nil {
			return err
		}
		if dir != workDir {
			s.Mark(q) // removed, if it has no name of its own
		}
	}
	return nil
}

// restore gives a cold name the bytes that were found for it, or ends it.
func (s *Source) restore(p string, id identity) error {
	if s.kept[id] == "" {
		return s.replaceLost(p)
	}
	if err := s.parents(p); err != nil {
		return err
	}
	return s.linkTo(keepName(id), p)
}

// replaceLost ends a cold name whose bytes are not in SOURCE any more.
func (s *Source) replaceLost(p string) error {
	dir, err := s.live.Walk(path.Dir(p))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Unlink(path.Base(p)); err != nil {
		return err
	}
	if _, _, err := s.root.stat(p); err != nil {
		s.report(Event{Event: "lost", Model: p, Error: "it was removed from SOURCE while no daemon ran"})
		return gone(err)
	}
	return s.mirror(p)
}

// Walk visits every name below dir, parents first. The node is closed after f returns.
func Walk(dir *shm.Node, at string, f func(p string, n *shm.Node)) error {
	ents, err := dir.Names()
	if err != nil {
		return err
	}
	for _, e := range ents {
		n, err := dir.Lookup(e.Name)
		if err != nil {
			continue // removed meanwhile
		}
		p := path.Join(at, e.Name)
		f(p, n)
		if n.Type == unix.S_IFDIR {
			err = Walk(n, p, f)
		}
		n.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// mirrorGrowing is mirror, in a store that may have to hold more names than it was made for.
func (s *Source) mirrorGrowing(p string) error {
	for {
		err := s.mirror(p)
		if !errors.Is(err, unix.ENOSPC) || s.store.Statfs().Ffree > 128 { // an attribute takes up to 65
			return err
		}
		if err := s.store.Grow(); err != nil {
			return fmt.Errorf("SOURCE has more names than fit: %w", err)
		}
	}
}

// mirror makes the live name of something in SOURCE. Files become placeholders
// of the right size whose bytes are read at the first open.
func (s *Source) mirror(p string) error {
	fd, err := s.root.open(p, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	id, st, err := identify(fd)
	if err != nil {
		return err
	}
	dir, err := s.live.Walk(path.Dir(p))
	if err != nil {
		return err
	}
	defer dir.Close()
	n, err := s.mirrorNode(dir, p, id, &st)
	if err != nil {
		_ = dir.Unlink(path.Base(p)) // a directory is made whole or not at all
	}
	if n == nil || err != nil {
		return err
	}
	defer n.Close()
	if err := mirrorAttributes(n, fd, &st); err != nil {
		_ = dir.Unlink(path.Base(p))
		_ = dir.Rmdir(path.Base(p))
		return err
	}
	if !s.IsCold(n) {
		s.know(n, id)
	}
	return n.Utimes([2]unix.Timespec{st.Atim, st.Mtim})
}

// mirrorAttributes is owner, mode and the attributes that users set.
func mirrorAttributes(n *shm.Node, fd int, st *unix.Stat_t) error {
	if unix.Geteuid() == 0 {
		if err := n.Chown(int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if n.Type == unix.S_IFLNK {
		return nil
	}
	buf := make([]byte, 64<<10)
	k, err := unix.Listxattr(viaProc(fd), buf)
	if err != nil {
		k = 0 // a file system without them
	}
	for _, name := range strings.Split(string(buf[:k]), "\x00") {
		if !strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "user.vbootfs") {
			continue
		}
		val := make([]byte, 64<<10)
		if k, err := unix.Getxattr(viaProc(fd), name, val); err == nil {
			if err := n.Setxattr(name, val[:k], 0); err != nil && err != unix.ENOTSUP {
				return err
			}
		}
	}
	return n.Chmod(st.Mode)
}

func (s *Source) mirrorNode(dir *shm.Node, p string, id identity, st *unix.Stat_t) (*shm.Node, error) {
	base := path.Base(p)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return s.placeholder(dir, p, id, st)
	case unix.S_IFDIR:
		return dir.Mkdir(base, 0o700, nil)
	case unix.S_IFLNK:
		target, err := s.root.readlink(p)
		if err != nil {
			return nil, err
		}
		return dir.Symlink(target, base, nil)
	case unix.S_IFIFO, unix.S_IFSOCK:
		return dir.Mknod(base, st.Mode, 0, nil)
	}
	return nil, nil // device nodes are not shown
}

// placeholder is a file of the right size without bytes. Hard links of SOURCE
// stay links.
func (s *Source) placeholder(dir *shm.Node, p string, id identity, st *unix.Stat_t) (*shm.Node, error) {
	if first := s.linked[id]; first != "" {
		n, err := s.live.Walk(first)
		if err != nil {
			return nil, err
		}
		defer n.Close()
		return nil, dir.Link(n, path.Base(p))
	}
	if st.Nlink > 1 {
		s.linked[id] = p
	}
	n, err := dir.Create(path.Base(p), 0o600, nil)
	if err != nil {
		return nil, err
	}
	if err = n.Truncate(st.Size); err == nil && st.Size > 0 {
		if err = s.chill(n, id); err != nil {
			err = s.fillNow(p, id, n) // no attributes on this tmpfs: take the bytes now
		}
	}
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}
