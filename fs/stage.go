package fs

import (
	"path"
	"time"

	"golang.org/x/sys/unix"

	"vbootfs/shm"
)

// stage is a file that is being written for a name which shows a loaded model.
// It has no name in output/ until it is a valid GGUF; then it takes the name,
// and readers of the old file keep the old file.
//
// An open that truncates stages an empty file, which itself becomes the next
// generation. An open that keeps the content (append, r+) stages a copy, made
// when it is first read or written. What its writer closes is copied once more
// before it is shown, because the writer may still have it mapped.
type stage struct {
	n    *node
	file string    // name in Store.Stage
	dir  *shm.Node // where the name is; follows renames
	base string
	tid  uint32 // the thread that was sent back to find it
	of   uint64 // inode number of the model that it will replace
	born time.Time

	// guarded by n.file.mu
	opened   int
	rejected bool // its bytes are kept as NAME.rejected
	copy     bool
	from     *shm.Node // copy: what it is a copy of; owned
	filled   bool
	dirty    bool // copy: written since it was last judged
}

// path is where the stage will be shown.
func (s *stage) path() (string, bool) {
	d, ok := s.dir.Path()
	return path.Join(d, s.base), ok
}

// staleAfter is how long a thread may take from ESTALE to its second try.
const staleAfter = 10 * time.Second

// redirect stages a file for the thread that wants to write the model n.
func (f *FS) redirect(n *node, tid uint32, trunc bool) error {
	p, ok := f.pathOf(n)
	if !ok {
		return unix.ESTALE // replaced and gone: look again
	}
	s := &stage{base: path.Base(p), tid: tid, of: n.live.Ino, born: time.Now(), copy: !trunc, file: f.store.StageName()}
	var err error
	if s.dir, err = f.store.Live.Walk(path.Dir(p)); err != nil {
		return err
	}
	live, err := f.store.CreateLike(s.file, n.live)
	if err == nil && s.copy {
		if s.from, err = n.live.Dup(); err == nil {
			err = live.Truncate(n.live.Size())
		}
		if err == nil {
			err = keepTimes(live, n.live)
		}
	} else if err == nil {
		f.rt.NoteTarget(live, p)
	}
	if err != nil {
		if live != nil {
			live.Close()
			_ = f.store.Stage.Unlink(s.file)
		}
		s.close()
		return err
	}
	f.mu.Lock()
	s.n = f.add(&node{key: live.Ino, live: live, holds: 1})
	s.n.file.stage = s
	old := f.staged[tid]
	f.staged[tid] = s
	f.mu.Unlock()
	f.abandon(old)
	f.sweep()
	return nil
}

func (s *stage) close() {
	s.dir.Close()
	if s.from != nil {
		s.from.Close()
	}
}

func keepTimes(to, from *shm.Node) error {
	st, err := from.Stat()
	if err != nil {
		return err
	}
	return to.Utimes([2]unix.Timespec{st.Atim, st.Mtim})
}

// sent is the stage that a thread was sent back to find, if the name stands for
// the model that it wants to write. Only now is it known by which of its names.
func (f *FS) sent(tid uint32, dir *node, name string, child *shm.Node) *node {
	f.mu.Lock()
	s := f.staged[tid]
	if s == nil || s.of != child.Ino {
		f.mu.Unlock()
		return nil
	}
	s.n.lookups++
	f.mu.Unlock()
	f.bind(s, dir, name)
	return s.n
}

// bind says under which name a stage will be shown.
func (f *FS) bind(s *stage, dir *node, name string) {
	d, err := dir.live.Dup()
	if err != nil {
		return // it stays with the name that was guessed
	}
	s.n.file.mu.Lock()
	s.dir.Close()
	s.dir, s.base = d, name
	p, ok := s.path()
	s.n.file.mu.Unlock()
	if ok && !s.copy {
		f.rt.NoteTarget(s.n.live, p)
	}
}

// arrive is the second try: the stage of the node, if it is one.
func (f *FS) arrive(n *node, tid uint32) *stage {
	n.file.mu.Lock()
	s := n.file.stage
	if s != nil {
		s.opened++
	}
	n.file.mu.Unlock()
	if s == nil {
		return nil
	}
	f.mu.Lock()
	mine := f.staged[tid] == s
	if mine {
		delete(f.staged, tid)
	}
	f.mu.Unlock()
	if mine {
		defer f.unhold(n) // after the caller's handle holds it
	}
	return s
}

// abandon discards a stage whose thread never came back.
func (f *FS) abandon(s *stage) {
	if s == nil {
		return
	}
	s.n.file.mu.Lock()
	if s.opened == 0 {
		f.discard(s.n)
	}
	s.n.file.mu.Unlock()
	f.unhold(s.n)
}

// sweep abandons what is too old.
func (f *FS) sweep() {
	var old []*stage
	f.mu.Lock()
	for tid, s := range f.staged {
		if time.Since(s.born) > staleAfter {
			old = append(old, s)
			delete(f.staged, tid)
		}
	}
	f.mu.Unlock()
	for _, s := range old {
		f.abandon(s)
	}
}

// discard ends a stage without showing it. Caller holds file.mu.
func (f *FS) discard(n *node) {
	s := n.file.stage
	n.file.stage = nil
	if s == nil {
		return
	}
	_ = f.store.Stage.Unlink(s.file)
	s.close()
}

// fill makes a copied stage whole before it is read or written.
func (f *FS) fill(n *node) error {
	n.file.mu.Lock()
	defer n.file.mu.Unlock()
	return f.fillLocked(n)
}

func (f *FS) fillLocked(n *node) error {
	s := n.file.stage
	if s == nil || !s.copy || s.filled {
		return nil
	}
	if err := f.rt.Warm(bg, s.from); err != nil {
		return err
	}
	err := f.rt.Still(func() error {
		_, err := n.live.Copy(s.from, 0, 0, s.from.Size())
		return err
	})
	if err != nil {
		return err
	}
	s.filled = true
	return nil
}

// snapshot copies what the writer of a copied stage has made so far.
func (f *FS) snapshot(n *node) (*shm.Node, string, error) {
	if err := f.fillLocked(n); err != nil {
		return nil, "", err
	}
	name := f.store.StageName()
	c, err := f.store.CreateLike(name, n.live)
	if err != nil {
		return nil, "", err
	}
	if _, err = c.Copy(n.live, 0, 0, n.live.Size()); err == nil {
		err = keepTimes(c, n.live)
	}
	if err != nil {
		c.Close()
		_ = f.store.Stage.Unlink(name)
		return nil, "", err
	}
	return c, name, nil
}
