package vectorboot

import (
	"fmt"
	"path"

	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
	"vbootfs/shm"
)

// patch is a range of a segment. Offsets and sizes are in bytes.
type patch struct {
	Off   int64 `json:"off"`
	Bytes int64 `json:"bytes"`
}

// piece is what a range of a segment becomes: bytes of a file from an offset on.
type piece struct {
	patch
	file *shm.Node // borrowed
	at   int64
}

// patch makes the next generation in place: the only function that overwrites
// bytes which readers rely on. Caller holds change.
func (rt *Runtime) patch(m *Model, g *Generation, s *step) ([]Change, error) {
	if err := reserve(g.Seg.Node, s.pieces); err != nil {
		return nil, err
	}
	kept := rt.preserve(m, g, s.pieces)
	j, err := rt.writeJournal(m, g, s.pieces)
	if err != nil {
		kept.close()
		return nil, err
	}
	if rt.source != nil { // before the first byte: a write-back that is running sees it at its end
		rt.source.Dirty(g.Seg.Node)
	}
	m.page.begin()
	rt.patching.Add(1)
	err = overwrite(g.Seg.Node, s.pieces)
	if err != nil && kept.putBack(g.Seg.Node) == nil {
		rt.patching.Add(1)
		m.page.end(g.N, g.Seg.Ino, g.Info.Size)
		j.remove() // until now a start would have completed the commit
		kept.close()
		return nil, err
	}
	rt.patching.Add(1)
	next := g.renumbered(m.next)
	next.Seg.note(rt.store.Mark("generation"), next.N)
	rt.mu.Lock()
	m.next++
	m.cur.Release()
	m.cur = next
	m.touch(s.touched, next.N)
	rt.mu.Unlock()
	rt.remember(m, kept, version{next.N, next.Loaded, s.what})
	m.page.end(next.N, next.Seg.Ino, next.Info.Size)
	if err != nil { // the room is reserved: nothing can fail but the machine
		return nil, fmt.Errorf("the journal stays for the next start: %w", err)
	}
	j.remove()
	data := make([]patch, len(s.pieces))
	for i := range s.pieces {
		data[i] = s.pieces[i].patch
	}
	rt.Events.Add(Event{Event: s.event, Model: m.path, Generation: next.N, To: s.to, Bytes: total(data)})
	return []Change{{Path: m.path, Data: data, Ino: g.Seg.Ino, told: func() { m.hub.changed(next.N) }}}, nil
}

// reserve makes sure that there is memory behind ranges of a file with holes.
func reserve(n *shm.Node, pieces []piece) error {
	st, err := n.Stat()
	if err != nil || st.Blocks*512 >= st.Size {
		return err
	}
	for _, x := range pieces {
		if x.Bytes == 0 {
			continue
		}
		if err := n.Allocate(unix.FALLOC_FL_KEEP_SIZE, x.Off, x.Bytes); err != nil {
			return err
		}
	}
	return nil
}

// write copies pieces into a file in which they lie shift bytes further on.
func write(n *shm.Node, pieces []piece, shift int64) error {
	return each(pieces, shift, n.Copy)
}

// overwrite is write to where memory was reserved: there is always room.
func overwrite(n *shm.Node, pieces []piece) error { return each(pieces, 0, n.Overwrite) }

func each(pieces []piece, shift int64, copy func(src *shm.Node, from, to, n int64) (int64, error)) error {
	for _, x := range pieces {
		k, err := copy(x.file, x.at, x.Off+shift, x.Bytes)
		if err == nil && k < x.Bytes {
			err = fmt.Errorf("%d bytes of %d: %w", k, x.Bytes, unix.EIO)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func total(list []patch) (n int64) {
	for _, x := range list {
		n += x.Bytes
	}
	return n
}

// newSegment makes the file of a step in Store.Stage. The caller releases the
// generation and removes the name.
func (rt *Runtime) newSegment(g *Generation, s *step) (next *Generation, name string, err error) {
	name = rt.store.StageName()
	n, err := rt.store.CreateLike(name, g.Seg.Node)
	if err != nil {
		return nil, "", err
	}
	defer n.Close()
	if err = s.build(n); err == nil {
		next, err = Judge(n)
	}
	if err != nil {
		_ = rt.store.Stage.Unlink(name)
		return nil, "", err
	}
	return next, name, nil
}

// build fills an empty file with another header before the data of a model, and
// with pieces, which say where in the old file they belong.
func build(n *shm.Node, g *Generation, head []byte, pieces []piece) error {
	if _, err := n.WriteAt(head, 0); err != nil {
		return err
	}
	from, shift := g.Info.DataOffset, int64(len(head))-g.Info.DataOffset
	if err := write(n, []piece{{patch{from, g.Info.Size - from}, g.Seg.Node, from}}, shift); err != nil {
		return err
	}
	return write(n, pieces, shift)
}

// install gives a new segment the model's name, unless the model changed
// meanwhile. It takes over next. Caller holds Names and change.
func (rt *Runtime) install(m *Model, g, next *Generation, name string, s *step) (_ []Change, again bool, err error) {
	rt.mu.RLock()
	same := rt.models[m.path] == m && m.cur != nil && m.cur.N == g.N && m.cur.Seg.Ino == g.Seg.Ino
	replaced := m.replaced
	rt.mu.RUnlock()
	if !same {
		next.Release()
		return nil, true, nil
	}
	dir, err := rt.store.Live.Walk(path.Dir(m.path))
	if err == nil {
		err = rt.store.Stage.Rename(name, dir, path.Base(m.path), 0)
		dir.Close()
	}
	if err != nil {
		next.Release()
		return nil, false, err
	}
	changes := rt.publish(m.path, next, s)
	rt.mu.Lock()
	if !s.replaces {
		m.replaced = replaced
	}
	m.touch(s.touched, next.N)
	rt.mu.Unlock()
	return append(changes, Change{Path: m.path, Moved: true}), false, nil
}

// shardWith is the part of a model in several files that a commit is for: the
// one that has all the tensors. Keys of a whole, and tensors of several shards,
// cannot be changed.
func (g *Generation) shardWith(tensors []TensorEdit, keys []KeyEdit) (*Generation, error) {
	if g.parts == nil {
		return g, nil
	}
	for _, part := range g.parts {
		if len(keys) == 0 && len(tensors) > 0 && hasAll(part.Info, tensors) {
			return part, nil
		}
	}
	return nil, fmt.Errorf("its files can only be changed one by one: %w", unix.EROFS)
}

func hasAll(f *ggufview.File, tensors []TensorEdit) bool {
	for _, e := range tensors {
		if _, ok := f.Tensor(e.Name); !ok {
			return false
		}
	}
	return true
}
