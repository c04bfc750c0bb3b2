package fs

import (
	"path"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
	"vbootfs/vectorboot"
)

// openEdit opens a row for writing. Its bytes bypass the page cache: what is not
// committed yet is the writer's alone.
func (f *FS) openEdit(c *call, n *node, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if n.ent.Bytes {
		if err := f.rt.WarmAll(c.context(), n.ent.At.Gen); err != nil {
			return status(err)
		}
	}
	e, err := n.ent.Edit(n.ent.At, in.Flags&unix.O_TRUNC != 0)
	if err != nil {
		return status(err)
	}
	out.Fh = f.open(&handle{n: n, pid: in.Pid, row: &rowRead{view: e, edit: e}})
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	return fuse.OK
}

// openStream opens a row whose reads wait.
func (f *FS) openStream(n *node, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	w, err := newWaiting(f.dev, n.ent, in.Pid, in.Flags&unix.O_ACCMODE != unix.O_RDONLY)
	if err != nil {
		return status(err)
	}
	out.Fh = f.open(&handle{n: n, pid: in.Pid, row: &rowRead{view: ggufview.Bytes(nil), stream: w}})
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NONSEEKABLE | fuse.FOPEN_STREAM | fuse.FOPEN_NOFLUSH
	return fuse.OK
}

// openPage opens a control page. Only through passthrough do all who map it
// share it; through the daemon it can be read, not mapped.
func (f *FS) openPage(n *node, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	page, err := f.rt.Control(n.ent.At.Path)
	if err != nil {
		return status(err)
	}
	f.route(n, page, out)
	if n.file.backing.Load() == 0 {
		out.OpenFlags = fuse.FOPEN_DIRECT_IO
	}
	out.Fh = f.open(&handle{n: n, pid: in.Pid, row: &rowRead{view: page, page: page}})
	return fuse.OK
}

// writeRow passes what is written to a row on.
func writeRow(h *handle, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	var err error
	switch r := h.row; {
	case r.edit != nil:
		var k int
		k, err = r.edit.WriteAt(data, int64(in.Offset))
		return uint32(k), status(err)
	case r.stream != nil:
		err = r.stream.write(data)
	default: // a control page: only a mapping makes sense
		return 0, fuse.Status(unix.EOPNOTSUPP)
	}
	return uint32(len(data)), status(err)
}

// flushRow makes a change take effect.
func (f *FS) flushRow(h *handle) fuse.Status {
	if h.row == nil || h.row.edit == nil {
		return fuse.OK
	}
	err := h.row.edit.Flush()
	if err != nil {
		f.log.WithField("file", h.n.ent.ID).WithField("error", brief(err)).Warn("change refused")
	}
	return status(err)
}

// close ends what an open row holds.
func (r *rowRead) close() {
	if r.edit != nil {
		r.edit.Close()
	}
	if r.stream != nil {
		r.stream.close()
	}
	if c, ok := r.view.(interface{ Close() }); ok && r.edit == nil {
		c.Close()
	}
}

// setRow answers SETATTR of a row: files that are being written can be cut; a
// truncation of a command file (`>ctl`) means nothing; all else is fixed.
func (f *FS) setRow(n *node, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if n.ent.Gate {
		return f.setGate(n, in, out)
	}
	if in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) != 0 || n.ent.Do == nil && n.ent.Edit == nil && n.ent.Stream == nil {
		return fuse.EPERM
	}
	if size, ok := in.GetSize(); ok && n.ent.Edit != nil {
		fh, open := in.GetFh()
		if h := f.handle(fh); open && h != nil && h.row.edit != nil {
			if err := h.row.edit.Truncate(int64(size)); err != nil {
				return status(err)
			}
		} else {
			return fuse.Status(unix.ETXTBSY)
		}
	}
	return f.attr(n, out)
}

// setGate changes who may commit a draft. The kernel has checked that the caller
// owns the file.
func (f *FS) setGate(n *node, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if st := f.attr(n, out); !st.Ok() {
		return st
	}
	p := vectorboot.Perm{UID: out.Uid, GID: out.Gid, Mode: out.Mode}
	if mode, ok := in.GetMode(); ok {
		p.Mode = mode
	}
	if uid, ok := in.GetUID(); ok {
		p.UID = uid
	}
	if gid, ok := in.GetGID(); ok {
		p.GID = gid
	}
	if in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		n.ent.At.Draft.SetPerm(p)
	}
	return f.attr(n, out)
}

// makeRow is mkdir among rows.
func (f *FS) makeRow(p *node, name string, out *fuse.EntryOut) fuse.Status {
	if p.ent.Make == nil {
		return fuse.EPERM
	}
	if err := p.ent.Make(p.ent.At, name); err != nil {
		return status(err)
	}
	e, err := p.ent.Lookup(name)
	if err != nil {
		return status(err)
	}
	return f.entry(f.internRow(e), ttlOf(e), out)
}

// readersOf lists the processes that have a model's bytes open through the mount.
func (f *FS) readersOf(p string) (out []vectorboot.Reader) {
	g := f.rt.Acquire(p)
	if g == nil {
		return nil
	}
	defer g.Release()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.handles {
		n := h.n
		switch {
		case n.live == nil && n.ent.Segment && n.ent.At.Path == p:
			out = append(out, vectorboot.Reader{PID: h.pid, Generation: n.ent.At.Gen.N})
		case n.live != nil && g.Uses(n.live.Ino):
			out = append(out, vectorboot.Reader{PID: h.pid, Generation: g.N})
		}
	}
	return out
}

// patched makes the page cache drop ranges of a segment that were changed in
// place. Passthrough files need nothing: they are the segment.
func (f *FS) patched(c vectorboot.Change) {
	var ids, wholes []uint64
	f.mu.Lock()
	if n := f.byKey[c.Ino]; n != nil { // the last close of who wrote it, if still on the way, has nothing to add
		n.file.last.Store(&verdict{of: stampOf(n.live)})
	}
	for id, n := range f.nodes {
		switch {
		case n.file.backing.Load() != 0 || n.live == nil && !n.ent.Segment:
		case n.live != nil && n.live.Ino == c.Ino, n.live == nil && n.ent.At.Gen.Seg != nil && n.ent.At.Gen.Seg.Ino == c.Ino:
			ids = append(ids, id)
		case n.live == nil && n.ent.At.Gen.Uses(c.Ino):
			wholes = append(wholes, id)
		}
	}
	f.mu.Unlock()
	for _, id := range wholes {
		f.dev.forgetData(id, 0, 0) // all of it: its offsets are others
	}
	for _, id := range ids {
		for _, d := range c.Data {
			f.dev.forgetData(id, d.Off, d.Bytes)
		}
	}
}

// moved is the name in output/ that the runtime gave to another file.
func (f *FS) moved(p string) []nameIn {
	d, err := f.store.Live.Walk(path.Dir(p))
	if err != nil {
		return nil // and with the directory the name
	}
	defer d.Close()
	return []nameIn{{d.Ino, path.Base(p)}}
}
