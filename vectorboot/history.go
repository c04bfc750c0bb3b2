package vectorboot

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vbootfs/shm"
)

// Old generations are kept as what was overwritten: of a commit in place the old
// bytes of its ranges, of a replacement the whole old segment. Going back to
// generation N takes the current bytes and undoes, newest first, what came after
// N. All is in files without a name, so it ends with the daemon, however that
// ends, and there is nothing that a crash could leave half done.

// maxPast is how many old generations of a model are kept at most, maxAll of all
// models together: each takes a few descriptors.
const maxPast, maxAll = 256, 2048

// version is a generation as people are told of it.
type version struct {
	N    uint64
	When time.Time
	What string // that made it
}

// past leads a model back to a generation from the one after it.
type past struct {
	version
	m     *Model
	bytes int64

	ranges []patch   // what was overwritten; the old bytes, one after another, are in
	file   *shm.Node // owned; or still in
	held   []byte    // from buffers
	whole  *Generation
}

// maxHeld is how many bytes a commit holds outside of the store at most. New
// memory there can be slow, so it is taken when readers have seen the commit.
const maxHeld = 4 << 20

// buffers are for held.
var buffers = sync.Pool{New: func() any { return new([maxHeld]byte) }}

func (x *past) release() {
	if x.held != nil {
		buffers.Put((*[maxHeld]byte)(x.held[:maxHeld]))
		x.held = nil
	}
}

// cost is the memory that is used, in bytes: whole pages.
func (x *past) cost() int64 { return (x.bytes + shm.PageSize - 1) &^ (shm.PageSize - 1) }

// close frees what is kept; of nothing, nothing.
func (x *past) close() {
	switch {
	case x == nil:
	case x.held != nil:
		x.release()
	case x.whole != nil:
		x.whole.Release()
	case x.file != nil:
		x.file.Close()
	}
}

// history is what is kept of all models. Runtime.change guards it, and
// Runtime.mu as well what is written.
type history struct {
	limit int64   // bytes
	used  int64   // bytes of memory
	all   []*past // oldest first
	held  []*past // that hold bytes outside of the store, unless they are closed
}

// SetHistory bounds the bytes that are kept for rollback, over all models; 0 keeps nothing.
func (rt *Runtime) SetHistory(limit int64) {
	rt.change.Lock()
	defer rt.change.Unlock()
	rt.history.limit = limit
	rt.room(&past{})
}

// keeps reports whether the segment of this inode number is kept.
func (h *history) keeps(ino uint64) bool {
	return slices.ContainsFunc(h.all, func(x *past) bool { return x.whole != nil && x.whole.Seg.Ino == ino })
}

// room drops the oldest until one more can be kept, and reports whether it can.
// Caller holds change.
func (rt *Runtime) room(x *past) bool {
	for len(rt.history.all) > 0 && (rt.history.used+x.cost() > rt.history.limit || len(rt.history.all) >= maxAll) {
		rt.dropFirst(rt.history.all[0].m)
	}
	return rt.history.used+x.cost() <= rt.history.limit
}

// dropFirst drops the oldest that is kept of a model. Caller holds change.
func (rt *Runtime) dropFirst(m *Model) {
	x := m.past[0]
	rt.mu.Lock()
	m.past = m.past[1:]
	rt.history.all = slices.DeleteFunc(rt.history.all, func(y *past) bool { return x == y })
	rt.history.used -= x.cost()
	rt.mu.Unlock()
	x.close()
}

// dropPast forgets the old generations of a model. Caller holds change.
func (rt *Runtime) dropPast(m *Model) {
	for len(m.past) > 0 {
		rt.dropFirst(m)
	}
}

// DropHistory forgets the old generations of all models, to make room. It
// reports whether there were any.
func (rt *Runtime) DropHistory() bool {
	rt.change.Lock()
	defer rt.change.Unlock()
	had := len(rt.history.all) > 0
	for len(rt.history.all) > 0 {
		rt.dropFirst(rt.history.all[0].m)
	}
	return had
}

// preserve copies what a commit is about to overwrite. Nothing comes back when
// that cannot be kept: the commit happens all the same. Caller holds change.
func (rt *Runtime) preserve(m *Model, g *Generation, pieces []piece) *past {
	x := &past{m: m}
	for _, p := range pieces {
		x.ranges = append(x.ranges, p.patch)
	}
	if x.bytes = total(x.ranges); !rt.room(x) {
		return nil
	}
	into := func(off, at, n int64) (err error) {
		_, err = g.Seg.Node.ReadAt(x.held[at:at+n], off)
		return err
	}
	if x.bytes <= maxHeld {
		x.held = buffers.Get().(*[maxHeld]byte)[:x.bytes]
	} else {
		n, err := rt.store.Stage.Tmpfile(0o600, nil)
		if err != nil {
			return nil
		}
		x.file = n
		into = func(off, at, size int64) error { return write(n, []piece{{patch{off, size}, g.Seg.Node, off}}, at-off) }
	}
	at := int64(0)
	for _, r := range x.ranges {
		if err := into(r.Off, at, r.Bytes); err != nil {
			x.close()
			return nil
		}
		at += r.Bytes
	}
	return x
}

// putBack writes what was overwritten where it was.
func (x *past) putBack(n *shm.Node) error {
	if x == nil {
		return errors.New("nothing was kept")
	}
	at := int64(0)
	for _, r := range x.ranges {
		var err error
		if x.held != nil {
			_, err = n.WriteAt(x.held[at:at+r.Bytes], r.Off)
		} else {
			err = overwrite(n, []piece{{r, x.file, at}})
		}
		if err != nil {
			return err
		}
		at += r.Bytes
	}
	return nil
}

// save moves what is held to the store. Caller holds change.
func (rt *Runtime) save(x *past) error {
	if x.held == nil {
		return nil
	}
	n, err := rt.store.Stage.Tmpfile(0o600, nil)
	if err != nil {
		return err
	}
	if _, err := n.WriteAt(x.held, 0); err != nil {
		n.Close()
		return err
	}
	x.release()
	x.file = n
	return nil
}

// saveHeld moves to the store what commits hold; what finds no room there is
// forgotten, with what is older.
func (rt *Runtime) saveHeld() {
	rt.change.Lock()
	defer rt.change.Unlock()
	for _, x := range rt.history.held {
		if rt.save(x) == nil {
			continue
		}
		for slices.Contains(x.m.past, x) {
			rt.dropFirst(x.m)
		}
	}
	rt.history.held = nil
}

// retain keeps a segment that is being replaced. Caller holds change.
func (rt *Runtime) retain(m *Model, g *Generation) *past {
	x := &past{m: m, bytes: g.Info.Size, whole: g}
	if g.Cold || !rt.room(x) {
		return nil
	}
	g.Acquire()
	return x
}

// remember adds what leads back from a model's new version. Without it nothing
// older can be reached any more. Caller holds change.
func (rt *Runtime) remember(m *Model, x *past, now version) {
	for len(m.past) > 0 && (x == nil || len(m.past) >= maxPast) {
		rt.dropFirst(m)
	}
	rt.mu.Lock()
	defer rt.mu.Unlock()
	was := m.now
	m.now = now
	if x == nil {
		return
	}
	x.version = was
	m.past = append(m.past, x)
	rt.history.all = append(rt.history.all, x)
	if x.held != nil {
		rt.history.held = append(rt.history.held, x)
	}
	rt.history.used += x.cost()
}

// Version is a line of a model's history.
type Version struct {
	N     uint64
	When  time.Time
	What  string // what made it
	Bytes int64  // kept to come back to it; 0 of the current one
}

// History lists the generations that Rollback can bring back, oldest first, and
// the current one.
func (rt *Runtime) History(p string) (list []Version) {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	m := rt.models[p]
	if m == nil || m.cur == nil {
		return nil
	}
	for _, x := range m.past {
		list = append(list, Version{x.N, x.When, x.What, x.bytes})
	}
	return append(list, Version{N: m.now.N, When: m.now.When, What: m.now.What})
}

// historyBytes is the memory that all history takes.
func (rt *Runtime) historyBytes() int64 {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	return rt.history.used
}

// Rollback makes the content of an old generation the next one, as a commit
// does: in place if only commits in place lie between, as a new segment
// otherwise. Of the policy, allow and forbid hold for tensors that change in
// place; their values were the model's own, so those are not looked at.
func (rt *Runtime) Rollback(p string, n uint64) error {
	if whole, err := rt.acquireWhole(p); err == nil && !rt.Known(p) {
		whole.Release()
		return fmt.Errorf("rollback of %s: its files can only be changed one by one: %w", p, unix.EROFS)
	}
	return rt.advance("rollback of", target{path: p}, func(m *Model, g *Generation) (*step, error) { return rt.back(m, g, n) })
}

// back is the step to an old generation. Caller holds change.
func (rt *Runtime) back(m *Model, g *Generation, n uint64) (*step, error) {
	i := slices.IndexFunc(m.past, func(x *past) bool { return x.N == n })
	switch {
	case n == g.N:
		return nil, fmt.Errorf("generation %d is the current one: %w", n, unix.EINVAL)
	case i < 0:
		return nil, fmt.Errorf("generation %d is not kept: %w", n, unix.ENOENT)
	}
	s := &step{event: "rollback", what: fmt.Sprintf("rollback %d", n), to: n}
	undo, base := m.past[i:], g
	if w := slices.IndexFunc(undo, func(x *past) bool { return x.whole != nil }); w >= 0 {
		base, undo, s.replaces = undo[w].whole, undo[:w], true
	}
	if err := rt.undo(s, undo); err != nil {
		s.close()
		return nil, err
	}
	if s.replaces || rt.shared(g.Seg) {
		base.Acquire()
		s.done = append(s.done, base.Release)
		s.build = func(n *shm.Node) error {
			if err := write(n, []piece{{patch{0, base.Info.Size}, base.Seg.Node, 0}}, 0); err != nil {
				return err
			}
			return write(n, s.pieces, 0)
		}
	}
	if s.replaces {
		return s, nil
	}
	if err := s.restored(g, rt.Policy(m.path)); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// undo makes pieces of what was overwritten: of each range the oldest bytes.
func (rt *Runtime) undo(s *step, list []*past) error {
	oldest := map[patch]int{} // index in pieces
	for _, x := range slices.Backward(list) {
		if err := rt.save(x); err != nil {
			return err
		}
		file, err := x.file.Dup() // what is kept may be dropped before the step is done
		if err != nil {
			return err
		}
		s.done = append(s.done, file.Close)
		at := int64(0)
		for _, r := range x.ranges {
			i, ok := oldest[r]
			if !ok {
				i = len(s.pieces)
				oldest[r] = i
				s.pieces = append(s.pieces, piece{})
			}
			s.pieces[i] = piece{r, file, at}
			at += r.Bytes
		}
	}
	return nil
}

// restored says which tensors a step in place changes, if they may.
func (s *step) restored(g *Generation, policy Policy) error {
	back := map[int64]bool{}
	for _, x := range s.pieces {
		back[x.Off] = true
	}
	for _, t := range g.Info.Tensors() {
		if !back[t.Offset] || t.Bytes == 0 {
			continue
		}
		if err := policy.permits(t.Name); err != nil {
			return err
		}
		s.touched = append(s.touched, "tensors/"+t.Name)
	}
	return nil
}

// Persist makes a model durable in SOURCE now, as fsync of its file and of its
// directory does.
func (rt *Runtime) Persist(p string) error {
	g := rt.Acquire(p)
	if g == nil {
		return ErrNoModel
	}
	g.Release()
	if rt.source == nil {
		return fmt.Errorf("publish %s: there is no SOURCE to keep it in: %w", p, unix.EOPNOTSUPP)
	}
	for _, file := range rt.Files(p) {
		if err := rt.source.Sync(file); err != nil {
			return fmt.Errorf("publish %s: %w", file, err)
		}
	}
	return nil
}
