package fs

import (
	"errors"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vbootfs/fs/tree"
	"vbootfs/ggufview"
	"vbootfs/shm"
	"vbootfs/vectorboot"
)

// rowRead is an open row: its content, and for a command file the text of the
// last command that failed.
type rowRead struct {
	edit   tree.Editor // open for writing
	stream *waiting
	page   *shm.Node // a control page; the view too

	mu   sync.Mutex // guards view, which a failed command changes
	view ggufview.View
}

// openRow opens a file of the tree.
func (f *FS) openRow(c *call, n *node, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	write := in.Flags&unix.O_ACCMODE != unix.O_RDONLY
	switch {
	case n.ent.Stream != nil:
		return f.openStream(n, in, out)
	case n.ent.Page:
		return f.openPage(n, in, out)
	case write && n.ent.Edit != nil:
		return f.openEdit(c, n, in, out)
	case write && n.ent.Do == nil:
		return fuse.EACCES
	case n.ent.Segment:
		return f.openSegment(n, in.Pid, out)
	}
	v, err := n.ent.Open(c.context())
	if err != nil {
		return status(err)
	}
	out.Fh = f.open(&handle{n: n, pid: in.Pid, row: &rowRead{view: v}})
	out.OpenFlags = fuse.FOPEN_NOFLUSH | f.caching(n.ent, v.Size())
	return fuse.OK
}

// uncached is the size in bytes from which computed values are not worth a copy in
// the page cache.
const uncached = 4 << 20

// caching says how the kernel caches a row. What is large is not, where the kernel
// can map such files all the same: values are computed about as fast as they are
// copied, so going by way of the cache takes twice the time.
func (f *FS) caching(e tree.Entry, size int64) uint32 {
	switch {
	case e.Live, e.Slow: // only a direct read is interrupted with its reader
		return fuse.FOPEN_DIRECT_IO
	case e.Large && size >= uncached && f.dev.flags&fuse.CAP_DIRECT_IO_ALLOW_MMAP != 0:
		return fuse.FOPEN_DIRECT_IO
	}
	return fuse.FOPEN_KEEP_CACHE
}

// read fills buf from a view. A view that somebody cut meanwhile faults; that is an error, not a crash.
func (r *rowRead) read(c *call, buf []byte, off int64) (n int, err error) {
	r.mu.Lock()
	v := r.view
	r.mu.Unlock()
	defer vectorboot.Guard(&err)()
	buf = buf[:max(0, min(int64(len(buf)), v.Size()-off))]
	if slow, ok := v.(tree.ContextReader); ok {
		n, err = slow.ReadAtContext(c.context(), buf, off)
	} else {
		n, err = v.ReadAt(buf, off)
	}
	if n > 0 || errors.Is(err, errEOF) {
		err = nil
	}
	return n, err
}

// size is how much there is to read, in bytes.
func (r *rowRead) size() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.view.Size()
}

// command runs one command and calls done when it has ended. Its error text is what
// the handle reads next.
func (f *FS) command(c *call, h *handle, line string, done func(fuse.Status)) {
	h.n.ent.Do(c.context(), h.n.ent.At, line, func(err error) {
		if err != nil {
			h.row.mu.Lock()
			h.row.view = ggufview.Bytes([]byte(brief(err) + "\n"))
			h.row.mu.Unlock()
			f.log.WithField("file", h.n.ent.ID).WithField("error", brief(err)).Warn("command failed")
		}
		done(status(err))
	})
}

// brief is the text of an error, or its beginning when somebody wrote so much that
// the text repeats.
func brief(err error) string {
	const enough = 1000
	text := err.Error()
	if len(text) > enough {
		text = text[:enough] + "..."
	}
	return text
}

// dirRead is an open directory of rows: the names it had when it was opened.
type dirRead struct {
	live  liveDir
	names []string
}

func (f *FS) openRowDir(n *node) *dirRead { return &dirRead{names: n.ent.Names()} }

// readRows lists rows from an offset on; the offset is an index.
func (f *FS) readRows(h *handle, off uint64, plus bool, out *fuse.DirEntryList) fuse.Status {
	for i := off; i < uint64(len(h.dir.names)); i++ {
		name := h.dir.names[i]
		e, err := h.n.ent.Lookup(name)
		if err != nil {
			continue // went away
		}
		d := fuse.DirEntry{Name: name, Mode: rowType(e), Ino: e.Ino(), Off: i + 1}
		if !plus || e.Output {
			if e.Close(); !f.addEntry(out, d, plus) {
				break
			}
			continue
		}
		slot := out.AddDirLookupEntry(d)
		if slot == nil {
			e.Close()
			break
		}
		ttl := ttlOf(e)
		if h.n.ent.At.Gen == nil { // below a generation nothing changes
			ttl = min(ttl, listedTTL)
		}
		if !f.entry(f.internRow(e), ttl, slot).Ok() {
			*slot = fuse.EntryOut{}
		}
	}
	return fuse.OK
}

// addEntry adds a name without looking it up.
func (f *FS) addEntry(out *fuse.DirEntryList, d fuse.DirEntry, plus bool) bool {
	if !plus {
		return out.AddDirEntry(d)
	}
	return out.AddDirLookupEntry(d) != nil
}

// ttlOf is how long the kernel may remember what a name stands for.
func ttlOf(e tree.Entry) time.Duration {
	if e.Fleeting() {
		return 0
	}
	return nameTTL
}

func rowType(e tree.Entry) uint32 {
	switch {
	case e.IsDir():
		return unix.S_IFDIR
	case e.Row.Link != nil:
		return unix.S_IFLNK
	}
	return unix.S_IFREG
}

// changed drops what the kernel remembers of a model. It is called by whoever
// made the change, without locks, before that caller is answered.
func (f *FS) changed(c vectorboot.Change) {
	if len(c.Data) > 0 {
		f.patched(c)
	}
	f.forget(f.outdated(c)...)
	f.forgetStale(c.Path)
	if whole, _, _, ok := vectorboot.Whole(c.Path); ok {
		f.forgetStale(whole)
	}
}

const modelsDir = "vector_boot/models"

// outdated are the names that a change gives another meaning.
func (f *FS) outdated(c vectorboot.Change) (list []nameIn) {
	if whole, _, _, ok := vectorboot.Whole(c.Path); ok {
		list = f.outdated(vectorboot.Change{Path: whole, Gone: true})
	}
	if c.Moved {
		list = append(list, f.moved(c.Path)...)
	}
	dir := path.Join(modelsDir, c.Path)
	for _, base := range tree.ModelNames() {
		list = append(list, nameIn{dir, base})
	}
	for c.Gone && dir != modelsDir { // directories above come and go with their last model
		list = append(list, nameIn{path.Dir(dir), path.Base(dir)})
		dir = path.Dir(dir)
	}
	return list
}

// nameIn is a name in a directory, which is given by the key of its node.
type nameIn struct {
	dir  any
	base string
}

// forget tells the kernel that names have to be looked up again.
func (f *FS) forget(list ...nameIn) {
	var known []entry
	f.mu.Lock()
	for _, n := range list {
		if dir := f.byKey[n.dir]; dir != nil {
			known = append(known, entry{dir.id, n.base})
		}
	}
	f.mu.Unlock()
	if len(known) > 0 {
		f.dev.forgetNames(known)
	}
}

// rowXattrs are the extended attributes of a row.
func rowXattrs(e tree.Entry) (list []tree.Xattr) {
	if e.Xattr != nil {
		list = e.Xattr(e.At)
	}
	if e.At.Path != "" {
		if i, ok := e.At.RT.Info(e.At.Path); ok && i.Error != "" {
			list = append(list, tree.Xattr{Name: errorXattr, Value: i.Error})
		}
	}
	return list
}

func rowXattr(e tree.Entry, attr string) ([]byte, error) {
	if !strings.HasPrefix(attr, "user.") {
		return nil, unix.ENOTSUP // ls asks for security.* once, not for every file
	}
	for _, x := range rowXattrs(e) {
		if x.Name == attr {
			return []byte(x.Value), nil
		}
	}
	return nil, unix.ENODATA
}

// rejected is the name of the bytes that were refused for a path.
func rejected(p string) string { return p + ".rejected" }

// errorOf is why the file at a path did not load, "" if it did.
func (f *FS) errorOf(p string) string {
	i, _ := f.rt.Info(strings.TrimSuffix(p, ".rejected"))
	return i.Error
}
