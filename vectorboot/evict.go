package vectorboot

import (
	"errors"
	"fmt"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"vbootfs/shm"
)

// ErrNoSource says that there is no directory from which a model could come back.
var ErrNoSource = errors.New("there is no SOURCE to send it to")

// Pin keeps a model from being evicted, or lets it again.
func (rt *Runtime) Pin(p string, pinned bool) error {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	m := rt.models[p]
	if m == nil || m.cur == nil {
		return ErrNoModel
	}
	m.pinned = pinned
	return nil
}

// Evict frees the memory of a model whose bytes are safe in SOURCE. Its layout
// stays readable; the next open of its bytes brings them back. Those who have it
// open or mapped keep the memory until they let go.
func (rt *Runtime) Evict(p string) error {
	g := rt.Acquire(p)
	if g == nil {
		return ErrNoModel
	}
	defer g.Release()
	for _, part := range g.parts {
		if err := rt.Evict(part.Path); err != nil {
			return err
		}
	}
	switch {
	case g.parts != nil:
		return nil
	case rt.source == nil:
		return fmt.Errorf("%w: %w", ErrNoSource, unix.EOPNOTSUPP)
	case g.Cold:
		return nil
	}
	if err := alone(p, g.Seg.Node); err != nil {
		return err
	}
	rt.source.awaitWriters(g.Seg.Ino)
	if err := rt.source.Sync(p); err != nil {
		return err
	}
	name := rt.store.StageName()
	n, err := rt.source.hollow(p, name, g.Seg.Node)
	if err != nil {
		return err
	}
	defer n.Close()
	defer rt.store.Stage.Unlink(name) // gone already when it took the name
	cold, err := rt.source.Judge(p, n)
	if err != nil {
		return err
	}
	if err := rt.cool(p, g, cold, name); err != nil {
		cold.Release()
		return err
	}
	rt.Stats.Evictions.Add(1)
	rt.Events.Add(Event{Event: "evict", Model: p, Generation: g.N, Bytes: g.Info.Size})
	rt.tell([]Change{{Path: p, Moved: true}})
	return nil
}

// alone refuses a file of several names: a placeholder would take the place of one
// of them, the others would keep the memory and be another file from then on.
func alone(p string, n *shm.Node) error {
	st, err := n.Stat()
	if err == nil && st.Nlink > 1 {
		err = fmt.Errorf("%s has %d names in the mount: %w", p, st.Nlink, unix.EBUSY)
	}
	return err
}

// awaitWriters gives a writer whose close() has returned the time to be gone: the
// kernel says so a moment later. One that keeps the file open is not waited for long.
func (s *Source) awaitWriters(ino uint64) {
	for i := range 100 {
		if !s.Busy(ino) {
			return
		}
		time.Sleep(time.Duration(min(i, 20)) * time.Millisecond)
	}
}

// cool puts a placeholder in the place of a generation, under the same number.
func (rt *Runtime) cool(p string, g, cold *Generation, name string) error {
	rt.Names.Lock()
	defer rt.Names.Unlock()
	rt.change.Lock()
	defer rt.change.Unlock()
	rt.mu.RLock()
	m := rt.models[p]
	ok := m != nil && m.cur == g
	pinned := ok && m.pinned
	rt.mu.RUnlock()
	switch {
	case pinned:
		return fmt.Errorf("%s is pinned: %w", p, unix.EBUSY)
	case !ok:
		return ErrConflict
	}
	if err := alone(p, g.Seg.Node); err != nil {
		return err
	}
	dir, err := rt.store.Live.Walk(path.Dir(p))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := rt.store.Stage.Rename(name, dir, path.Base(p), 0); err != nil {
		return err
	}
	cold.N, cold.Path, cold.m = g.N, p, m
	cold.Seg.note(rt.store.Mark(numberMark), cold.N)
	rt.dropPast(m) // SOURCE may bring other bytes back
	rt.mu.Lock()
	m.cur = cold
	m.set(Cold)
	rt.mu.Unlock()
	g.Release()
	m.page.begin()
	m.page.end(cold.N, cold.Seg.Ino, cold.Info.Size)
	return nil
}

// hollow makes a placeholder for a file that SOURCE has at p.
func (s *Source) hollow(p, name string, like *shm.Node) (*shm.Node, error) {
	st, err := like.Stat()
	if err != nil {
		return nil, err
	}
	id, ok := s.alike(p, like)
	if !ok || s.notes.isDirty(like.Ino) {
		return nil, ErrConflict
	}
	n, err := s.store.CreateLike(name, like)
	if err != nil {
		return nil, err
	}
	if err = n.Truncate(st.Size); err == nil {
		err = s.chill(n, id)
	}
	if err == nil {
		err = n.Utimes([2]unix.Timespec{st.Atim, st.Mtim})
	}
	if err != nil {
		n.Close()
		_ = s.store.Stage.Unlink(name)
		return nil, err
	}
	return n, nil
}
