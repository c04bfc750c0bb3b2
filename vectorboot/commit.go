package vectorboot

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
	"vbootfs/shm"
)

// TensorEdit is the new content of a tensor: exactly its stored bytes.
type TensorEdit struct {
	Name string
	File *shm.Node // borrowed
	Base uint64    // generation that the edit was made from; 0: it does not matter
}

// KeyEdit is a change of a metadata key.
type KeyEdit struct {
	ggufview.KeyEdit
	Base uint64
}

// ErrConflict says that somebody else has changed the same thing since.
var ErrConflict = errors.New("changed by somebody else meanwhile")

// Commit makes changes to the model of a name, all or none, as its next generation.
//
// Tensors are patched in place: whoever has the segment mapped sees them,
// bracketed by the sequence counter of the control page. Before the first byte
// changes, a journal says where the new ones are, so that a daemon that dies in
// between is completed by the next. A change of keys, or of a file that has
// another name, makes a new segment instead; who has the old one mapped keeps it.
func (rt *Runtime) Commit(p string, tensors []TensorEdit, keys []KeyEdit) error {
	t := target{path: p}
	if !rt.Known(p) {
		if g, err := rt.acquireWhole(p); err == nil { // otherwise the commit finds that out
			defer g.Release()
			return rt.CommitTo(g, tensors, keys)
		}
	}
	return rt.commit(t, tensors, keys)
}

// CommitTo is Commit to the model that a generation is of, whatever its name is
// by now. If that was removed it fails, also when another one has the name.
func (rt *Runtime) CommitTo(g *Generation, tensors []TensorEdit, keys []KeyEdit) error {
	part, err := g.shardWith(tensors, keys)
	if err != nil {
		return fmt.Errorf("commit to %s: %w", g.Path, err)
	}
	return rt.commit(target{path: part.Path, m: part.m}, tensors, keys)
}

func (rt *Runtime) commit(t target, tensors []TensorEdit, keys []KeyEdit) error {
	return rt.advance("commit to", t, func(m *Model, g *Generation) (*step, error) {
		return rt.commitStep(m, g, tensors, keys)
	})
}

// target is the model that a change is for: by name, or, if m is set, the model
// itself under whatever name it has by now; path then only tells what to call it.
type target struct {
	path string
	m    *Model
}

// aim finds the model and a hold on its generation. g is nil if there is none.
// Caller holds change, so the model keeps its name.
func (rt *Runtime) aim(t target) (m *Model, g *Generation) {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	if m = t.m; m == nil {
		m = rt.models[t.path]
	}
	if m == nil || rt.models[m.path] != m || m.cur == nil {
		return nil, nil
	}
	m.cur.Acquire()
	return m, m.cur
}

// step is what the next generation of a model will be.
type step struct {
	event    string // that is told: commit, replace or rollback
	what     string // for people, in history
	to       uint64 // the generation that a rollback brings back
	touched  []string
	pieces   []piece                 // written in place, or, if build is set,
	build    func(n *shm.Node) error // makes a new segment in an empty file
	replaces bool                    // all may be different, not only what was touched
	done     []func()                // lets go of what the step uses
}

func (s *step) close() {
	for _, f := range s.done {
		f()
	}
}

// patience is how often a new segment is made in vain, because the model changed
// meanwhile, before everybody else has to wait for it.
const patience = 3

// advance brings a model to its next generation. decide says which, and is asked
// again when the model changed while a new segment was made. doing begins errors.
func (rt *Runtime) advance(doing string, t target, decide func(*Model, *Generation) (*step, error)) error {
	for try := 0; ; {
		changes, again, err := rt.attempt(t, decide, try >= patience)
		switch {
		case again:
			try++
			continue
		case errors.Is(err, unix.ENOSPC) && rt.DropHistory():
			continue // now there is room, or nothing left to give up
		case err != nil:
			rt.Events.Add(Event{Event: "refused", Model: t.path, Error: oneLine(err.Error())})
			return fmt.Errorf("%s %s: %w", doing, t.path, err)
		}
		rt.Stats.Commits.Add(1)
		rt.tell(changes)
		rt.saveHeld()
		if rt.source != nil {
			rt.source.MarkLater(changes[0].Path)
		}
		return nil
	}
}

// attempt is one try of advance. Copying a model takes long, so others may change
// it meanwhile, unless alone: then they wait.
func (rt *Runtime) attempt(t target, decide func(*Model, *Generation) (*step, error), alone bool) (_ []Change, again bool, err error) {
	if alone {
		rt.Names.Lock()
		defer rt.Names.Unlock()
	}
	rt.change.Lock()
	unlock := sync.OnceFunc(rt.change.Unlock)
	defer func() { unlock() }()
	m, g := rt.aim(t)
	if g == nil {
		return nil, false, ErrNoModel
	}
	defer g.Release()
	if g.Cold {
		return nil, false, fmt.Errorf("the model is cold: load it first: %w", unix.EBUSY)
	}
	s, err := decide(m, g)
	if err != nil {
		return nil, false, err
	}
	defer s.close()
	if s.build == nil {
		changes, err := rt.patch(m, g, s)
		return changes, false, err
	}
	if !alone {
		unlock()
	}
	next, name, err := rt.newSegment(g, s)
	if err != nil {
		return nil, false, err
	}
	defer rt.store.Stage.Unlink(name) // gone already when it took the model's name
	if !alone {
		rt.Names.Lock()
		defer rt.Names.Unlock()
		rt.change.Lock()
		unlock = sync.OnceFunc(rt.change.Unlock)
	}
	return rt.install(m, g, next, name, s)
}

// commitStep finds out whether a commit may happen, and how. Caller holds change.
func (rt *Runtime) commitStep(m *Model, g *Generation, tensors []TensorEdit, keys []KeyEdit) (*step, error) {
	if err := rt.check(m, g, tensors, keys); err != nil {
		return nil, err
	}
	s := &step{event: "commit"}
	for _, e := range tensors {
		t, _ := g.Info.Tensor(e.Name)
		s.touched = append(s.touched, "tensors/"+e.Name)
		s.pieces = append(s.pieces, piece{patch{t.Offset, t.Bytes}, e.File, 0})
	}
	edits := make([]ggufview.KeyEdit, len(keys))
	for i, k := range keys {
		s.touched = append(s.touched, "metadata/"+k.Key)
		edits[i] = k.KeyEdit
	}
	s.what = summary(s.touched)
	if len(keys) == 0 && !rt.shared(g.Seg) {
		return s, nil
	}
	head, err := g.Info.Rewrite(edits)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, unix.EINVAL)
	}
	s.event = "replace"
	s.build = func(n *shm.Node) error { return build(n, g, head, s.pieces) }
	return s, nil
}

// summary names a few things that changed.
func summary(touched []string) string {
	const most = 4
	if len(touched) <= most {
		return strings.Join(touched, " ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(touched[:most], " "), len(touched)-most)
}

// check finds out whether a commit may happen. Caller holds change.
func (rt *Runtime) check(m *Model, g *Generation, tensors []TensorEdit, keys []KeyEdit) error {
	rt.mu.RLock()
	policy := m.policy
	rt.mu.RUnlock()
	for _, e := range tensors {
		t, ok := g.Info.Tensor(e.Name)
		if !ok {
			return fmt.Errorf("tensor %q: %w", e.Name, unix.ENOENT)
		}
		if size := e.File.Size(); size != t.Bytes {
			return fmt.Errorf("tensor %q: %d bytes where %d are stored: %w", e.Name, size, t.Bytes, unix.EINVAL)
		}
		if rt.changedSince(m, "tensors/"+e.Name, e.Base) {
			return fmt.Errorf("tensor %q: %w", e.Name, ErrConflict)
		}
		if err := policy.permits(e.Name); err != nil {
			return err
		}
		before := ggufview.Section(g, t.Offset, t.Bytes)
		if err := policy.inspect(t, g.Info.BigEndian, before, fileView{e.File}); err != nil {
			return err
		}
	}
	for _, k := range keys {
		if rt.changedSince(m, "metadata/"+k.Key, k.Base) {
			return fmt.Errorf("key %q: %w", k.Key, ErrConflict)
		}
	}
	return nil
}

// changedSince reports whether something is another than in generation base; of
// base 0 nobody wants to know. Caller holds change.
func (rt *Runtime) changedSince(m *Model, what string, base uint64) bool {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	return base > 0 && max(m.touched[what], m.replaced) > base
}

// fileView is a staged file as a view.
type fileView struct{ *shm.Node }

// shared reports whether a change of the segment would change something else,
// too: another model, another name of the file, or what history keeps.
// Caller holds change.
func (rt *Runtime) shared(seg *Segment) bool {
	if st, err := seg.Node.Stat(); err == nil && st.Nlink > 1 {
		return true
	}
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	n := 0
	for _, m := range rt.models {
		if m.cur != nil && m.cur.Seg.Ino == seg.Ino {
			n++
		}
	}
	return n > 1 || rt.history.keeps(seg.Ino)
}

// touch remembers in which generation things last changed. Caller holds mu.
func (m *Model) touch(things []string, n uint64) {
	for _, what := range things {
		m.touched[what] = n
	}
}

// Still runs f, which copies files, so that each is of one generation: again when
// a commit changed a segment meanwhile, and in the end while none can.
func (rt *Runtime) Still(f func() error) error {
	for range patience {
		before := rt.patching.Load()
		if err := f(); err != nil || before%2 == 0 && rt.patching.Load() == before {
			return err
		}
	}
	rt.change.Lock()
	defer rt.change.Unlock()
	return f()
}
