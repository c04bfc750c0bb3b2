package fs

import (
	"errors"
	"path"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vbootfs/shm"
	"vbootfs/vectorboot"
)

// errorXattr holds why a file did not load.
const errorXattr = "user.vbootfs.error"

func (f *FS) lookupLive(p *node, tid uint32, name string, out *fuse.EntryOut) fuse.Status {
	if s := f.sent(tid, p, name); s != nil {
		return f.entry(s, 0, out)
	}
	child, err := p.live.Lookup(name)
	if err != nil {
		return status(err)
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
	f.rt.Names.Lock()
	changes, err := f.linkAs(p, n, name, to)
	f.rt.Names.Unlock()
	f.tell(changes)
	if err != nil {
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
	f.rt.Names.Lock()
	dir, ok := p.live.Path()
	err := unlink(p.live, name)
	var changes []vectorboot.Change
	if err == nil && ok {
		changes = f.rt.Remove(path.Join(dir, name))
	}
	f.rt.Names.Unlock()
	f.tell(changes)
	if err == nil && ok {
		f.mark(path.Join(dir, name))
	}
	return status(err)
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
	f.rt.Names.Lock()
	changes, err := f.rename(p, q, oldName, newName, in.Flags)
	f.rt.Names.Unlock()
	f.tell(changes)
	return status(err)
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
	if err := p.live.Rename(oldName, q.live, newName, flags); err != nil {
		a.drop()
		b.drop()
		return nil, err
	}
	if flags&unix.RENAME_EXCHANGE != 0 {
		f.mark(from)
		f.mark(to)
		return f.rt.Swap(from, to, a.g, b.g), nil
	}
	changes := f.settleNames(a, from, to)
	if s := f.rt.Source(); s != nil {
		s.Renamed(from, to)
	}
	return changes, nil
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
	m := moving{dir: n.Type == unix.S_IFDIR}
	if g := f.rt.Acquire(from); g != nil {
		m.model = g.Seg.Ino == n.Ino
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

// SetAttr is chmod, chown, utimensat and truncate.
func (f *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := f.node(in.NodeId)
	if n.live == nil {
		return f.setRow(n, in, out)
	}
	if size, ok := in.GetSize(); ok {
		if err := f.resize(n, in, int64(size)); err != nil {
			return status(err)
		}
	}
	if err := setMeta(n.live, in); err != nil {
		return status(err)
	}
	f.afterMeta(n, in)
	return f.attr(n, out)
}

// resize truncates. Without an open file behind it there will be no close, so
// the result is judged at once.
func (f *FS) resize(n *node, in *fuse.SetAttrIn, size int64) error {
	if err := f.truncate(n, size); err != nil {
		return err
	}
	if _, ok := in.GetFh(); !ok {
		n.file.mu.Lock()
		idle := n.file.writers == 0
		n.file.mu.Unlock()
		if idle {
			_ = f.judge(n, true) // recorded in models/P/error; the truncation itself worked
		}
	}
	return nil
}

// setMeta applies mode, owner and times.
func setMeta(n *shm.Node, in *fuse.SetAttrIn) error {
	uid, hasUID := in.GetUID()
	gid, hasGID := in.GetGID()
	if hasUID || hasGID {
		u, g := -1, -1
		if hasUID {
			u = int(uid)
		}
		if hasGID {
			g = int(gid)
		}
		if err := n.Chown(u, g); err != nil {
			return err
		}
	}
	if mode, ok := in.GetMode(); ok {
		if err := n.Chmod(mode); err != nil {
			return err
		}
	}
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME|fuse.FATTR_ATIME_NOW|fuse.FATTR_MTIME_NOW) != 0 {
		return n.Utimes([2]unix.Timespec{
			timeOf(in, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
			timeOf(in, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
		})
	}
	return nil
}

func timeOf(in *fuse.SetAttrIn, set, now uint32, sec uint64, nsec uint32) unix.Timespec {
	switch {
	case in.Valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	case in.Valid&set != 0:
		return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
	}
	return unix.Timespec{Nsec: unix.UTIME_OMIT}
}

// afterMeta lets a change of attributes reach what shows them elsewhere: the
// model's files, SOURCE, and for a copied stage (touch opens the model for
// writing) the model itself.
func (f *FS) afterMeta(n *node, in *fuse.SetAttrIn) {
	n.file.mu.Lock()
	p, ok := f.pathOf(n)
	copied := n.file.stage != nil && n.file.stage.copy
	n.file.mu.Unlock()
	if !ok {
		return
	}
	if copied {
		if live, err := f.store.Live.Walk(p); err == nil {
			_ = setMeta(live, in)
			live.Close()
		}
	}
	if in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) != 0 && f.rt.Known(p) {
		f.tell([]vectorboot.Change{{Path: p}})
	}
	f.mark(p)
}

// GetXAttr reads an extended attribute.
func (f *FS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	n := f.node(h.NodeId)
	if strings.HasPrefix(attr, "system.posix_acl_") {
		return 0, fuse.Status(unix.ENOTSUP)
	}
	if n.live != nil && attr != errorXattr {
		if f.store.IsMark(attr) {
			return 0, fuse.Status(unix.ENODATA)
		}
		k, err := n.live.Getxattr(attr, dest)
		return uint32(k), status(err)
	}
	val, err := f.computedXattr(n, attr)
	if err != nil {
		return 0, status(err)
	}
	return fits(val, dest)
}

func (f *FS) computedXattr(n *node, attr string) ([]byte, error) {
	if n.live == nil {
		return rowXattr(n.ent, attr)
	}
	n.file.mu.Lock()
	p, ok := f.pathOf(n)
	n.file.mu.Unlock()
	if text := f.errorOf(p); ok && text != "" {
		return []byte(text), nil
	}
	return nil, unix.ENODATA
}

// fits copies an answer whose size is asked for first with an empty buffer.
func fits(val, dest []byte) (uint32, fuse.Status) {
	if len(dest) > 0 && len(dest) < len(val) {
		return uint32(len(val)), fuse.ERANGE
	}
	copy(dest, val)
	return uint32(len(val)), fuse.OK
}

// ListXAttr lists the names of extended attributes.
func (f *FS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n := f.node(h.NodeId)
	var out []byte
	if n.live != nil {
		list, err := n.live.Listxattr()
		if err != nil {
			return 0, status(err)
		}
		for _, name := range strings.SplitAfter(string(list), "\x00") {
			if !f.store.IsMark(name) && !strings.HasPrefix(name, "system.posix_acl_") {
				out = append(out, name...)
			}
		}
	}
	if n.live == nil {
		for _, x := range rowXattrs(n.ent) {
			out = append(out, x.Name+"\x00"...)
		}
	} else if _, err := f.computedXattr(n, errorXattr); err == nil {
		out = append(out, errorXattr+"\x00"...)
	}
	return fits(out, dest)
}

// SetXAttr sets an extended attribute.
func (f *FS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	return f.changeXattr(in.NodeId, attr, func(n *shm.Node) error {
		return n.Setxattr(attr, data, int(in.Flags))
	})
}

// RemoveXAttr removes an extended attribute.
func (f *FS) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string) fuse.Status {
	return f.changeXattr(h.NodeId, attr, func(n *shm.Node) error { return n.Removexattr(attr) })
}

func (f *FS) changeXattr(id uint64, attr string, change func(*shm.Node) error) fuse.Status {
	n := f.node(id)
	switch {
	case strings.HasPrefix(attr, "system.posix_acl_"):
		return fuse.Status(unix.ENOTSUP)
	case n.live == nil || strings.HasPrefix(attr, "user.vbootfs") || f.store.IsMark(attr):
		return fuse.EPERM
	}
	if err := change(n.live); err != nil {
		return status(err)
	}
	n.file.mu.Lock()
	p, ok := f.pathOf(n)
	n.file.mu.Unlock()
	if ok {
		f.mark(p)
	}
	return fuse.OK
}
