package fs

import (
	"strings"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"vbootfs/shm"
	"vbootfs/vectorboot"
)

// liveDir is an open directory of the store. Many programs open directories just
// to have them, so it takes a descriptor when it is first read.
type liveDir struct {
	mu  sync.Mutex // one reader at a time; guards dir
	dir *shm.Dir
}

func (d *liveDir) open(n *shm.Node) (err error) {
	if d.dir == nil {
		d.dir, err = n.OpenDir()
	}
	return err
}

// OpenDir opens a directory.
func (f *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := f.node(in.NodeId)
	h := &handle{n: n}
	if n.live == nil {
		h.dir = f.openRowDir(n)
		if n.ent.At.Gen != nil && !n.ent.Live { // what belongs to a generation never changes
			out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
		}
	} else {
		h.dir = &dirRead{}
	}
	out.Fh = f.open(h)
	return fuse.OK
}

// ReadDir lists names.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in, false, out)
}

// ReadDirPlus lists names and looks each up.
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in, true, out)
}

func (f *FS) readDir(in *fuse.ReadIn, plus bool, out *fuse.DirEntryList) fuse.Status {
	h := f.handle(in.Fh)
	if h.n.live == nil {
		return f.readRows(h, in.Offset, plus, out)
	}
	d := &h.dir.live
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.open(h.n.live); err != nil {
		return status(err)
	}
	for off := int64(in.Offset); ; {
		ents, err := d.dir.Read(off)
		if err != nil || len(ents) == 0 {
			return status(err)
		}
		for _, e := range ents {
			if off = e.Off; !f.addLive(h.n, e, plus, out) {
				return fuse.OK
			}
		}
	}
}

// addLive adds a name of the store; false when the reply is full.
func (f *FS) addLive(p *node, e shm.Dirent, plus bool, out *fuse.DirEntryList) bool {
	d := fuse.DirEntry{Name: e.Name, Mode: e.Type, Ino: e.Ino, Off: uint64(e.Off)}
	if !plus || e.Name == "." || e.Name == ".." {
		return f.addEntry(out, d, plus)
	}
	slot := out.AddDirLookupEntry(d)
	if slot == nil {
		return false
	}
	child, err := p.live.Lookup(e.Name)
	ttl := nameTTL
	if err == nil && f.replaceable(e.Name, child) {
		ttl = listedTTL
	}
	if err != nil || !f.entry(f.intern(child, p, e.Name), ttl, slot).Ok() {
		*slot = fuse.EntryOut{} // no node: the kernel looks it up when it is used
	}
	return true
}

// replaceable reports whether the daemon may give a name in output/ to another file.
func (f *FS) replaceable(base string, n *shm.Node) bool {
	return vectorboot.Loadable(base) || strings.HasSuffix(base, rejected("")) || n.HasXattr(f.store.Mark("generation"))
}

// ReleaseDir closes a directory.
func (f *FS) ReleaseDir(in *fuse.ReleaseIn) {
	f.Release(nil, in)
}
