package vectorboot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
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

// Commit makes changes to a model, all or none, as its next generation.
//
// Tensors are patched in place: whoever has the segment mapped sees them,
// bracketed by the sequence counter of the control page. Before the first byte
// changes, the new ones are in a journal, so that a daemon that dies in between
// is completed by the next. A change of keys, or of a file that two models share,
// makes a new segment instead; who has the old one mapped keeps it.
func (rt *Runtime) Commit(p string, tensors []TensorEdit, keys []KeyEdit) error {
	p, err := rt.shardOf(p, tensors, keys)
	if err != nil {
		return err
	}
	changes, err := rt.commit(p, tensors, keys)
	if err != nil {
		rt.Events.Add(Event{Event: "refused", Model: p, Error: oneLine(err.Error())})
		return fmt.Errorf("commit to %s: %w", p, err)
	}
	rt.Stats.Commits.Add(1)
	rt.tell(changes)
	if rt.source != nil {
		rt.source.MarkLater(p)
	}
	return nil
}

func (rt *Runtime) commit(p string, tensors []TensorEdit, keys []KeyEdit) ([]Change, error) {
	for {
		changes, again, err := rt.tryCommit(p, tensors, keys)
		if !again {
			return changes, err
		}
	}
}

// tryCommit asks to be called again when another change came in between.
func (rt *Runtime) tryCommit(p string, tensors []TensorEdit, keys []KeyEdit) (changes []Change, again bool, err error) {
	rt.change.Lock()
	unlock := sync.OnceFunc(rt.change.Unlock)
	defer unlock()
	g, _ := rt.acquire(p)
	if g == nil {
		return nil, false, ErrNoModel
	}
	defer g.Release()
	if g.Cold {
		return nil, false, fmt.Errorf("the model is cold: load it first: %w", unix.EBUSY)
	}
	if err := rt.check(p, g, tensors, keys); err != nil {
		return nil, false, err
	}
	if len(keys) == 0 && !rt.shared(g.Seg.Ino) {
		changes, err = rt.patch(p, g, tensors)
		return changes, false, err
	}
	unlock() // copying a model takes long
	return rt.replaceWith(p, g, tensors, keys)
}

// check finds out whether a commit may happen. Caller holds change.
func (rt *Runtime) check(p string, g *Generation, tensors []TensorEdit, keys []KeyEdit) error {
	rt.mu.RLock()
	m := rt.models[p]
	policy, touched := m.policy, m.touched
	rt.mu.RUnlock()
	for _, e := range tensors {
		t, ok := g.Info.Tensor(e.Name)
		if !ok {
			return fmt.Errorf("tensor %q: %w", e.Name, unix.ENOENT)
		}
		if size := e.File.Size(); size != t.Bytes {
			return fmt.Errorf("tensor %q: %d bytes where %d are stored: %w", e.Name, size, t.Bytes, unix.EINVAL)
		}
		if e.Base > 0 && touched["tensors/"+e.Name] > e.Base {
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
		if k.Base > 0 && touched["metadata/"+k.Key] > k.Base {
			return fmt.Errorf("key %q: %w", k.Key, ErrConflict)
		}
	}
	return nil
}

// fileView is a staged file as a view.
type fileView struct{ *shm.Node }

// shared reports whether more than one model has the segment. Caller holds change.
func (rt *Runtime) shared(ino uint64) bool {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	n := 0
	for _, m := range rt.models {
		if m.cur != nil && m.cur.Seg.Ino == ino {
			n++
		}
	}
	return n > 1
}

// patch changes tensors in place. Caller holds change.
func (rt *Runtime) patch(p string, g *Generation, tensors []TensorEdit) ([]Change, error) {
	var list []patch
	for _, e := range tensors {
		t, _ := g.Info.Tensor(e.Name)
		list = append(list, patch{t.Offset, t.Bytes})
	}
	rt.mu.RLock()
	m := rt.models[p]
	page := m.page
	rt.mu.RUnlock()

	j := journal{Ino: g.Seg.Ino, Path: []byte(p), Generation: m.next, Patches: list}
	name, err := rt.writeJournal(j, tensors)
	if err != nil {
		return nil, err
	}
	page.begin()
	for i, e := range tensors {
		if _, err = g.Seg.Node.Copy(e.File, 0, list[i].Off, list[i].Bytes); err != nil {
			break // the bytes are there already: nothing can fail but the machine
		}
	}
	next := g.renumbered(m.next)
	next.Seg.note(rt.store.Mark("generation"), next.N)
	rt.mu.Lock()
	m.next++
	m.cur.Release()
	m.cur = next
	m.touch(tensors, nil, next.N)
	rt.mu.Unlock()
	page.end(next.N, next.Seg.Ino, next.Info.Size)
	if err != nil {
		return nil, fmt.Errorf("the journal stays for the next start: %w", err)
	}
	_ = rt.store.Stage.Unlink(name)
	rt.Events.Add(Event{Event: "commit", Model: p, Generation: next.N, Bytes: total(list)})
	return []Change{{Path: p, Data: list, Ino: g.Seg.Ino, told: func() { m.hub.changed(next.N) }}}, nil
}

func total(list []patch) (n int64) {
	for _, x := range list {
		n += x.Bytes
	}
	return n
}

// touch remembers in which generation things last changed. Caller holds mu.
func (m *Model) touch(tensors []TensorEdit, keys []KeyEdit, n uint64) {
	for _, e := range tensors {
		m.touched["tensors/"+e.Name] = n
	}
	for _, k := range keys {
		m.touched["metadata/"+k.Key] = n
	}
}

// patch is a range of a segment. Offsets and sizes are in bytes.
type patch struct {
	Off   int64 `json:"off"`
	Bytes int64 `json:"bytes"`
}

// journal is the first line of a journal file; the bytes of its patches follow.
type journal struct {
	Ino        uint64  `json:"ino"`
	Path       []byte  `json:"path"` // as base64: a path need not be UTF-8
	Generation uint64  `json:"generation"`
	Patches    []patch `json:"patches"`
}

// journalPrefix begins the names of complete journals in Store.Stage.
const journalPrefix = "journal-"

// writeJournal saves what a commit is about to do. The rename makes it count.
func (rt *Runtime) writeJournal(j journal, tensors []TensorEdit) (string, error) {
	tmp := rt.store.StageName()
	n, err := rt.store.Stage.Create(tmp, 0o600, nil)
	if err != nil {
		return "", err
	}
	defer n.Close()
	head, err := json.Marshal(j)
	if err == nil {
		err = fillJournal(n, append(head, '\n'), tensors)
	}
	name := journalPrefix + strconv.FormatUint(j.Ino, 10)
	if err == nil {
		err = rt.store.Stage.Rename(tmp, rt.store.Stage, name, 0)
	}
	if err != nil {
		_ = rt.store.Stage.Unlink(tmp)
		return "", err
	}
	return name, nil
}

func fillJournal(n *shm.Node, head []byte, tensors []TensorEdit) error {
	if _, err := n.WriteAt(head, 0); err != nil {
		return err
	}
	off := int64(len(head))
	for _, e := range tensors {
		size := e.File.Size()
		if k, err := n.Copy(e.File, 0, off, size); err != nil {
			return err
		} else if k != size {
			return io.ErrUnexpectedEOF
		}
		off += size
	}
	return nil
}

// redo completes the commit of a daemon that died in it.
func (rt *Runtime) redo(n *shm.Node) error {
	m, err := n.Map()
	if err != nil {
		return err
	}
	defer m.Unmap()
	head, _, ok := strings.Cut(string(m.Bytes[:min(len(m.Bytes), 1<<20)]), "\n")
	var j journal
	if !ok || json.Unmarshal([]byte(head), &j) != nil {
		return fmt.Errorf("journal %d is damaged", n.Ino)
	}
	seg, err := rt.store.Live.Walk(string(j.Path))
	if err != nil {
		return nil // the model is gone
	}
	defer seg.Close()
	if seg.Ino != j.Ino {
		return nil // replaced since
	}
	off := int64(len(head)) + 1
	for _, x := range j.Patches {
		if _, err := seg.Copy(n, off, x.Off, x.Bytes); err != nil {
			return err
		}
		off += x.Bytes
	}
	return seg.Setxattr(rt.store.Mark("generation"), strconv.AppendUint(nil, j.Generation, 10), 0)
}

// replaceWith makes a new segment with other keys and tensors.
func (rt *Runtime) replaceWith(p string, g *Generation, tensors []TensorEdit, keys []KeyEdit) (_ []Change, again bool, err error) {
	edits := make([]ggufview.KeyEdit, len(keys))
	for i := range keys {
		edits[i] = keys[i].KeyEdit
	}
	head, err := g.Info.Rewrite(edits)
	if err != nil {
		return nil, false, fmt.Errorf("%w: %w", err, unix.EINVAL)
	}
	name := rt.store.StageName()
	n, err := rt.store.CreateLike(name, g.Seg.Node)
	if err != nil {
		return nil, false, err
	}
	defer n.Close()
	defer rt.store.Stage.Unlink(name) // gone already when it took the name
	if err := build(n, g, head, int64(len(head))-g.Info.DataOffset, tensors); err != nil {
		return nil, false, err
	}
	next, err := Judge(n)
	if err != nil {
		return nil, false, err
	}
	return rt.install(p, g, next, name, tensors, keys)
}

func build(n *shm.Node, g *Generation, head []byte, shift int64, tensors []TensorEdit) error {
	if _, err := n.WriteAt(head, 0); err != nil {
		return err
	}
	from := g.Info.DataOffset
	if _, err := n.Copy(g.Seg.Node, from, from+shift, g.Info.Size-from); err != nil {
		return err
	}
	for _, e := range tensors {
		t, _ := g.Info.Tensor(e.Name)
		if _, err := n.Copy(e.File, 0, t.Offset+shift, t.Bytes); err != nil {
			return err
		}
	}
	return nil
}

// install gives a new segment the model's name, unless the model changed meanwhile.
func (rt *Runtime) install(p string, g, next *Generation, name string, tensors []TensorEdit, keys []KeyEdit) (_ []Change, again bool, err error) {
	rt.Names.Lock()
	defer rt.Names.Unlock()
	rt.change.Lock()
	defer rt.change.Unlock()
	if rt.Generation(p) != g.N {
		next.Release()
		return nil, true, nil
	}
	dir, err := rt.store.Live.Walk(path.Dir(p))
	if err == nil {
		err = rt.store.Stage.Rename(name, dir, path.Base(p), 0)
		dir.Close()
	}
	if err != nil {
		next.Release()
		return nil, false, err
	}
	changes := rt.publish(p, next)
	rt.mu.Lock()
	rt.models[p].touch(tensors, keys, next.N)
	rt.mu.Unlock()
	return append(changes, Change{Path: p, Moved: true}), false, nil
}
