package fs

import (
	"errors"
	"path"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vbootfs/shm"
	"vbootfs/vectorboot"
)

func (f *FS) lookupLive(p *node, tid uint32, name string, out *fuse.EntryOut) fuse.Status {
	child, err := p.live.Lookup(name)
	if err != nil {
		return status(err)
	}
	if s := f.sent(tid, p, name, child); s != nil {
		child.Close()
		return f.entry(s, 0, out)
	}
	return f.entry(f.intern(child, p, name), nameTTL, out)
}

// owner is who makes something.
func owner(c *fuse.Caller) *shm.Owner { return &shm.Owner{UID: c.Uid, GID: c.Gid} }

// liveDirOf is the node of a directory that can be changed.
func (f *FS) liveDirOf(id uint64) (*node, fuse.Status) {
	n := f.node(id)
	if n.live == nil {
		return nil, fuse.EPERM
	}
	return n, fuse.OK
}

// made answers a request that made a name, and has it written back.
func (f *FS) made(p *node, name string, child *shm.Node, err error, out *fuse.EntryOut) (*node, fuse.Status) {
	if err != nil {
		return nil, status(err)
	}
	n := f.intern(child, p, name)
	if n.live.Type != unix.S_IFREG {
		f.markIn(p, name)
	}
	return n, f.entry(n, nameTTL, out)
}

func (f *FS) markIn(dir *node, name string) {
	if d, ok := dir.live.Path(); ok && f.rt.Source() != nil {
		f.mark(path.Join(d, name))
	}
}

// Create makes and opens a file.
func (f *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	p, st := f.liveDirOf(in.NodeId)
	if !st.Ok() {
		return st
	}
	child, err := p.live.Create(name, in.Mode, owner(&in.Caller))
	if errors.Is(err, unix.EEXIST) && in.Flags&unix.O_EXCL == 0 {
		return f.createExisting(p, in, name, out)
	}
	n, st := f.made(p, name, child, err, &out.EntryOut)
	if !st.Ok() {
		return st
	}
	out.Fh = f.openData(n, in.Pid, true, &out.OpenOut)
	return fuse.OK
}

// createExisting opens a file that somebody else made first.
func (f *FS) createExisting(p *node, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if st := f.lookupLive(p, in.Pid, name, &out.EntryOut); !st.Ok() {
		return st
	}
	st := f.openLive(f.node(out.NodeId), in.Flags, in.Pid, &out.OpenOut)
	if !st.Ok() {
		f.Forget(out.NodeId, 1)
	}
	return st
}

// Tmpfile makes a file without a name.
func (f *FS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	p, st := f.liveDirOf(in.NodeId)
	if !st.Ok() {
		return st
	}
	child, err := p.live.Tmpfile(in.Mode, owner(&in.Caller))
	if err != nil {
		return status(err)
	}
	n := f.intern(child, nil, "")
	if st := f.entry(n, 0, &out.EntryOut); !st.Ok() {
		return st
	}
	out.Fh = f.openData(n, in.Pid, true, &out.OpenOut)
	return fuse.OK
}

// Mknod makes an empty file, FIFO, socket or device.
func (f *FS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	p, st := f.liveDirOf(in.NodeId)
	if !st.Ok() {
		return st
	}
	child, err := p.live.Mknod(name, in.Mode, in.Rdev, owner(&in.Caller))
	n, st := f.made(p, name, child, err, out)
	if st.Ok() && n.live.Type == unix.S_IFREG {
		f.markIn(p, name)
	}
	return st
}

// Mkdir makes a directory.
func (f *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if n := f.node(in.NodeId); n.live == nil {
		return f.makeRow(n, name, out)
	}
	p, st := f.liveDirOf(in.NodeId)
	if !st.Ok() {
		return st
	}
	child, err := p.live.Mkdir(name, in.Mode, owner(&in.Caller))
	_, st = f.made(p, name, child, err, out)
	return st
}

// Symlink makes a symbolic link.
func (f *FS) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	p, st := f.liveDirOf(h.NodeId)
	if !st.Ok() {
		return st
	}
	child, err := p.live.Symlink(target, name, owner(&h.Caller))
	_, st = f.made(p, name, child, err, out)
	return st
}

// Link gives a file another name. A name of a model makes it one, under both names.
func (f *FS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	p, st := f.liveDirOf(in.NodeId)
	if !st.Ok() {
		return st
	}
	n := f.node(in.Oldnodeid)
	if n.live == nil {
		return fuse.Status(unix.EXDEV)
	}
	dir, ok := p.live.Path()
	if !ok {
		return fuse.ENOENT
	}
	to := path.Join(dir, name)
	if err := f.named(func() ([]vectorboot.Change, error) { return f.linkAs(p, n, name, to) }); err != nil {
		return status(err)
	}
	f.mark(to)
	f.mu.Lock()
	n.lookups++
	f.mu.Unlock()
	n.at.Store(&place{p, name})
	return f.entry(n, nameTTL, out)
}

func (f *FS) linkAs(p, n *node, name, to string) ([]vectorboot.Change, error) {
	g, err := f.judgeAs(n.live, to)
	if err != nil {
		return f.rt.Fail(to, err), err
	}
	if err := p.live.Link(n.live, name); err != nil {
		if g != nil {
			g.Release()
		}
		return nil, err
	}
	if g == nil {
		return nil, nil
	}
	return f.rt.Publish(to, g), nil
}

// judgeAs reads the header of a file that is about to get the name to. It
// returns nil for what is no model: other names, other kinds, empty files.
func (f *FS) judgeAs(n *shm.Node, to string) (*vectorboot.Generation, error) {
	if n.Type != unix.S_IFREG || !vectorboot.Loadable(to) || n.Size() == 0 {
		return nil, nil
	}
	if s := f.rt.Source(); s != nil && s.IsCold(n) {
		if p, ok := n.Path(); ok {
			return s.Judge(p, n)
		}
	}
	g, err := vectorboot.Judge(n)
	if err == nil {
		f.mu.Lock()
		known := f.byKey[n.Ino]
		f.mu.Unlock()
		if known != nil { // its last close, if still on the way, has nothing to add
			known.file.last.Store(&verdict{of: stampOf(n)})
		}
	}
	return g, err
}

// Unlink removes a name; a model under it is unloaded.
func (f *FS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.remove(h.NodeId, name, (*shm.Node).Unlink)
}

// Rmdir removes an empty directory.
func (f *FS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if n := f.node(h.NodeId); n.live == nil && n.ent.Drop != nil {
		return status(n.ent.Drop(n.ent.At, name))
	}
	return f.remove(h.NodeId, name, (*shm.Node).Rmdir)
}

func (f *FS) remove(id uint64, name string, unlink func(*shm.Node, string) error) fuse.Status {
	p, st := f.liveDirOf(id)
	if !st.Ok() {
		return st
	}
	return status(f.named(func() ([]vectorboot.Change, error) {
		dir, ok := p.live.Path()
		if !ok {
			return nil, unlink(p.live, name)
		}
		gone := path.Join(dir, name)
		settled := f.leaving(gone)
		err := unlink(p.live, name)
		if err == nil {
			f.mark(gone)
		}
		settled(err == nil)
		if err != nil {
			return nil, err
		}
		return f.rt.Remove(gone), nil
	}))
}

// leaving tells SOURCE that a name is about to go (Source.Leaving).
func (f *FS) leaving(p string) (settled func(went bool)) {
	if s := f.rt.Source(); s != nil {
		return s.Leaving(p)
	}
	return func(bool) {}
}

// Rename moves a name. A file that becomes a model is judged first: if it is
// none, nothing moves.
func (f *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	p, st := f.liveDirOf(in.NodeId)
	if !st.Ok() {
		return st
	}
	q, st := f.liveDirOf(in.Newdir)
	if !st.Ok() {
		return st
	}
	return status(f.named(func() ([]vectorboot.Change, error) { return f.rename(p, q, oldName, newName, in.Flags) }))
}

// named changes names together with the registry, and then tells the kernel.
func (f *FS) named(change func() ([]vectorboot.Change, error)) error {
	changes, err := func() ([]vectorboot.Change, error) {
		f.rt.Names.Lock()
		defer f.rt.Names.Unlock() // also when a request dies of a panic
		return change()
	}()
	f.tell(changes)
	return err
}

func (f *FS) rename(p, q *node, oldName, newName string, flags uint32) ([]vectorboot.Change, error) {
	from, to, err := renamePaths(p, q, oldName, newName)
	if err != nil {
		return nil, err
	}
	a, err := f.prepare(p.live, oldName, from, to)
	if err != nil {
		return f.refused(to, err), err
	}
	b := moving{}
	if flags&unix.RENAME_EXCHANGE != 0 {
		if b, err = f.prepare(q.live, newName, to, from); err != nil {
			a.drop()
			return f.refused(from, err), err
		}
	}
	settled := func(bool) {}
	if flags&unix.RENAME_EXCHANGE == 0 {
		settled = f.leaving(from)
	}
	if err := p.live.Rename(oldName, q.live, newName, flags); err != nil {
		settled(false)
		a.drop()
		b.drop()
		return nil, err
	}
	defer settled(true)
	if flags&unix.RENAME_EXCHANGE != 0 {
		if s := f.rt.Source(); s != nil {
			s.Exchanged(from, to)
		}
		return f.rt.Swap(from, to, a.g, b.g), nil
	}
	f.placed(a.ino, q, newName)
	changes := f.settleNames(a, from, to)
	if s := f.rt.Source(); s != nil {
		s.Renamed(from, to)
	}
	return changes, nil
}

// placed notes where a file is now, for files with several names.
func (f *FS) placed(ino uint64, dir *node, name string) {
	f.mu.Lock()
	n := f.byKey[ino]
	f.mu.Unlock()
	if n != nil {
		n.at.Store(&place{dir, name})
	}
}

// refused records why a rename made no model; other errors have no model to blame.
func (f *FS) refused(p string, err error) []vectorboot.Change {
	if status(err) != fuse.Status(unix.EBADMSG) {
		return nil
	}
	return f.rt.Fail(p, err)
}

func renamePaths(p, q *node, oldName, newName string) (from, to string, err error) {
	a, ok := p.live.Path()
	b, ok2 := q.live.Path()
	if !ok || !ok2 {
		return "", "", unix.ENOENT
	}
	return path.Join(a, oldName), path.Join(b, newName), nil
}

// moving is a name on its way.
type moving struct {
	ino   uint64
	dir   bool
	model bool                   // a model already, under the old name
	g     *vectorboot.Generation // becomes a model by the new name
}

func (m moving) drop() {
	if m.g != nil {
		m.g.Release()
	}
}

// prepare looks at what is about to move from one path to another.
func (f *FS) prepare(dir *shm.Node, name, from, to string) (moving, error) {
	n, err := dir.Lookup(name)
	if err != nil {
		return moving{}, err
	}
	defer n.Close()
	m := moving{ino: n.Ino, dir: n.Type == unix.S_IFDIR}
	if g := f.rt.Acquire(from); g != nil {
		m.model = g.Seg != nil && g.Seg.Ino == n.Ino
		g.Release()
	}
	if !m.model {
		m.g, err = f.judgeAs(n, to)
	}
	return m, err
}

// settleNames brings the registry after a rename that happened.
func (f *FS) settleNames(a moving, from, to string) []vectorboot.Change {
	switch {
	case a.dir, a.model && vectorboot.Loadable(to):
		return f.rt.Move(from, to)
	case a.g != nil:
		return append(f.rt.Remove(from), f.rt.Publish(to, a.g)...)
	}
	return append(f.rt.Remove(from), f.rt.Remove(to)...)
}
