package fs

import (
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vbootfs/shm"
	"vbootfs/vectorboot"
)

// errorXattr holds why a file did not load.
const errorXattr = "user.vbootfs.error"

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
		if err := f.roomForXattr(n, attr, len(data)); err != nil {
			return err
		}
		return n.Setxattr(attr, data, int(in.Flags))
	})
}

// maxXattrs is how many bytes the names and values of a file's extended attributes may
// have together: one of the largest that Linux has, and as much again.
const maxXattrs = 128 << 10

// roomForXattr answers ENOSPC when a file would have more attributes than it may,
// or when attributes would take the room that is left for files: they lie beside
// the limit of shared memory.
func (f *FS) roomForXattr(n *shm.Node, attr string, size int) error {
	list, err := n.Listxattr()
	if err != nil {
		return err
	}
	sum := len(attr) + size
	for _, name := range strings.Split(string(list), "\x00") {
		if name == "" || name == attr || f.store.IsMark(name) {
			continue
		}
		k, err := n.Getxattr(name, nil)
		if err != nil {
			continue // removed meanwhile
		}
		sum += len(name) + k
	}
	if sum > maxXattrs || f.store.Crowded() {
		return unix.ENOSPC
	}
	return nil
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
