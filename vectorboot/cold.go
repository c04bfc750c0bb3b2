package vectorboot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
	"vbootfs/shm"
)

// adopt walks SOURCE for names that the live tree has not, and a tree that was
// taken over for names that SOURCE has not.
func (s *Source) adopt(attached bool) error {
	s.linked = map[uint64]string{}
	defer func() { s.linked = nil }()
	err := fs.WalkDir(s.root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == "." {
			return err
		}
		if p == workDir {
			return fs.SkipDir
		}
		if n, err := s.live.Walk(p); err == nil {
			n.Close()
			return nil
		}
		if err := s.mirror(p); err != nil {
			return fmt.Errorf("SOURCE %s: %w", p, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !attached {
		return nil
	}
	return Walk(s.live, ".", func(p string, n *shm.Node) {
		if !s.IsCold(n) && !s.clean(p, n) {
			s.Mark(p)
		}
	})
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

// mirror makes the live name of something in SOURCE. Files become placeholders
// of the right size whose bytes are read at the first open.
func (s *Source) mirror(p string) error {
	info, err := s.root.Lstat(p)
	if err != nil {
		return err
	}
	st := info.Sys().(*unixStat)
	dir, err := s.live.Walk(path.Dir(p))
	if err != nil {
		return err
	}
	defer dir.Close()
	n, err := s.mirrorNode(dir, p, info, st)
	if n == nil || err != nil {
		return err
	}
	defer n.Close()
	if unix.Geteuid() == 0 {
		if err := n.Chown(int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if n.Type != unix.S_IFLNK {
		if err := n.Chmod(st.Mode); err != nil {
			return err
		}
	}
	return n.Utimes([2]unix.Timespec{unix.Timespec(st.Atim), unix.Timespec(st.Mtim)})
}

func (s *Source) mirrorNode(dir *shm.Node, p string, info fs.FileInfo, st *unixStat) (*shm.Node, error) {
	base := path.Base(p)
	switch info.Mode().Type() {
	case 0:
		return s.placeholder(dir, p, info)
	case fs.ModeDir:
		return dir.Mkdir(base, 0o700, nil)
	case fs.ModeSymlink:
		target, err := s.root.Readlink(p)
		if err != nil {
			return nil, err
		}
		return dir.Symlink(target, base, nil)
	case fs.ModeNamedPipe, fs.ModeSocket:
		return dir.Mknod(base, st.Mode, 0, nil)
	}
	return nil, nil // device nodes are not shown
}

// placeholder is a file of the right size without bytes. Hard links of SOURCE
// stay links.
func (s *Source) placeholder(dir *shm.Node, p string, info fs.FileInfo) (*shm.Node, error) {
	st := info.Sys().(*unixStat)
	if first := s.linked[st.Ino]; first != "" {
		n, err := s.live.Walk(first)
		if err != nil {
			return nil, err
		}
		defer n.Close()
		return nil, dir.Link(n, path.Base(p))
	}
	if st.Nlink > 1 {
		s.linked[st.Ino] = p
	}
	n, err := dir.Create(path.Base(p), 0o600, nil)
	if err != nil {
		return nil, err
	}
	if err = n.Truncate(info.Size()); err == nil && info.Size() > 0 {
		if err = n.Setxattr(s.cold, []byte("1"), 0); err != nil {
			err = s.Fill(context.Background(), p, n) // no attributes on this tmpfs: take the bytes now
		}
	}
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// IsCold reports whether the bytes of a file are only in SOURCE.
func (s *Source) IsCold(n *shm.Node) bool {
	return n.Type == unix.S_IFREG && n.HasXattr(s.cold)
}

// Open opens the file of a cold name in SOURCE.
func (s *Source) Open(p string) (*os.File, error) { return s.root.Open(p) }

// Fill copies the bytes of a placeholder from SOURCE. Until it succeeds the file
// stays cold. Times are kept.
func (s *Source) Fill(ctx context.Context, p string, n *shm.Node) error {
	f, err := s.root.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	return s.fillFrom(ctx, f, p, n)
}

// fillOnce is fillFrom for one of those who ask at the same time; the others
// wait for it.
func (s *Source) fillOnce(ctx context.Context, f *os.File, p string, n *shm.Node) error {
	for {
		s.mu.Lock()
		busy := s.filling[n.Ino]
		if busy == nil {
			break
		}
		s.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	done := make(chan struct{})
	s.filling[n.Ino] = done
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.filling, n.Ino)
		s.mu.Unlock()
		close(done)
	}()
	if !s.IsCold(n) {
		return nil // another one has filled it; it may have been written since
	}
	return s.fillFrom(ctx, f, p, n)
}

func (s *Source) fillFrom(ctx context.Context, f *os.File, p string, n *shm.Node) error {
	st, err := n.Stat()
	if err != nil {
		return err
	}
	for done := int64(0); done < st.Size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		k, err := n.CopyFrom(int(f.Fd()), done, done, min(st.Size-done, 64<<20))
		if err != nil {
			_ = n.Allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, st.Size)
			return fmt.Errorf("filling %s from SOURCE: %w", p, err)
		}
		if k == 0 {
			return fmt.Errorf("%s in SOURCE ends at byte %d, not %d: %w", p, done, st.Size, unix.EIO)
		}
		done += k
	}
	if err := n.Utimes([2]unix.Timespec{st.Atim, st.Mtim}); err != nil {
		return err
	}
	if err := n.Removexattr(s.cold); err != nil && !errors.Is(err, unix.ENODATA) {
		return err
	}
	return nil
}

// Thaw says that the bytes of a placeholder are not wanted any more: it was cut to nothing.
func (s *Source) Thaw(n *shm.Node) { _ = n.Removexattr(s.cold) }

// Judge reads the header of a cold file from SOURCE.
func (s *Source) Judge(p string, n *shm.Node) (*Generation, error) {
	begin := time.Now()
	f, err := s.root.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := ggufview.Open(f, n.Size())
	if err != nil {
		return nil, err
	}
	own, err := n.Dup()
	if err != nil {
		return nil, err
	}
	g := newGeneration(&Segment{Ino: own.Ino, Node: own}, info, begin)
	g.Cold = true
	return g, nil
}
