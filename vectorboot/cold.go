package vectorboot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
	"vbootfs/shm"
)

// chill marks a file as one whose bytes are in this file of SOURCE.
func (s *Source) chill(n *shm.Node, id identity) error {
	return n.Setxattr(s.cold, []byte(id.String()), 0)
}

// coldID is the file of SOURCE that has the bytes of a cold one.
func (s *Source) coldID(n *shm.Node) (id identity, cold bool) {
	if n.Type != unix.S_IFREG {
		return id, false
	}
	buf := make([]byte, 64)
	k, err := n.Getxattr(s.cold, buf)
	if err != nil {
		return id, false
	}
	return parseIdentity(string(buf[:k])), true
}

// IsCold reports whether the bytes of a file are only in SOURCE.
func (s *Source) IsCold(n *shm.Node) bool {
	return n.Type == unix.S_IFREG && n.HasXattr(s.cold)
}

// Open opens the file in SOURCE that has the bytes of a cold one, by name p. If another
// file stands there, for whatever reason, the error says so.
func (s *Source) Open(p string, n *shm.Node) (*os.File, error) {
	f, err := s.openCold(p, n)
	if err != nil { // perhaps it is just being moved
		s.one.Lock()
		defer s.one.Unlock()
		return s.openCold(p, n)
	}
	return f, nil
}

func (s *Source) openCold(p string, n *shm.Node) (*os.File, error) {
	want, cold := s.coldID(n)
	if !cold {
		return nil, errWarm
	}
	places := []string{p, s.formerly(p)}
	if !s.readOnly {
		places = append(places, keepName(want))
	}
	for _, q := range places {
		f, id, err := s.root.file(q)
		if err != nil {
			continue
		}
		if st, err := f.Stat(); err == nil && id == want && st.Size() == n.Size() {
			return f, nil
		}
		f.Close()
	}
	return nil, fmt.Errorf("SOURCE has not the file that was %s: %w", p, unix.EIO)
}

// errWarm says that a file needs nothing from SOURCE.
var errWarm = errors.New("not cold")

// settleCold makes sure that SOURCE has the bytes of a cold file under its name. Caller holds one.
func (s *Source) settleCold(p string, n *shm.Node, st *unix.Stat_t, id identity) error {
	if have, _, err := s.root.stat(p); err == nil && have == id {
		return nil
	}
	places, err := s.others(p, n, st)
	if err != nil {
		return err
	}
	for _, q := range append(places, keepName(id)) {
		if have, _, err := s.root.stat(q); err == nil && have == id {
			return s.linkTo(q, p)
		}
	}
	return fmt.Errorf("SOURCE has not the file that was %s: %w", p, unix.EIO)
}

// unkeep removes files that p needed and does not any more. Caller holds one.
func (s *Source) unkeep(p string) error {
	for id, q := range s.kept {
		if q != p {
			continue
		}
		if at, err := s.coldName(id); err != nil || at != "" {
			if have, _, err := s.root.stat(at); err != nil || have != id {
				continue
			}
		}
		if err := gone(s.root.remove(keepName(id))); err != nil {
			return err
		}
		delete(s.kept, id)
	}
	return nil
}

// fillNow fills a placeholder at once.
func (s *Source) fillNow(p string, id identity, n *shm.Node) error {
	f, have, err := s.root.file(p)
	if err != nil {
		return err
	}
	defer f.Close()
	if have != id {
		return unix.ESTALE
	}
	return s.fillFrom(context.Background(), f, p, n)
}

// Fill copies the bytes of a placeholder from SOURCE. Until it succeeds the file
// stays cold. Times are kept.
func (s *Source) Fill(ctx context.Context, p string, n *shm.Node) error {
	f, err := s.Open(p, n)
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

func (s *Source) fillFrom(ctx context.Context, f *os.File, p string, n *shm.Node) (err error) {
	st, err := n.Stat()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil { // as if nobody had tried
			_ = n.Allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, st.Size)
			_ = n.Utimes([2]unix.Timespec{st.Atim, st.Mtim})
		}
	}()
	for done := int64(0); done < st.Size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		k, err := n.CopyFrom(int(f.Fd()), done, done, min(st.Size-done, 64<<20))
		if err != nil {
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
	if id, cold := s.coldID(n); cold {
		s.know(n, id)
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
	f, err := s.Open(p, n)
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
