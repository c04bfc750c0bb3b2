// Package tree says what the mount looks like, as data. layout.go is the table:
// one row a file. This file walks the table; it knows no FUSE and implements
// io/fs, so that the whole tree can be tested without a mount.
package tree

import (
	"context"
	"encoding/binary"
	"io/fs"
	"path"
	"strconv"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
	"vbootfs/shm"
	"vbootfs/vectorboot"
)

// At is what a row speaks of. Rows of models/P and below have Path; those that
// describe a loaded file have Gen, held by the Entry that carries it.
type At struct {
	RT     *vectorboot.Runtime
	Path   string
	Gen    *vectorboot.Generation
	KV     *ggufview.KV
	Tensor *ggufview.Tensor

	Draft   *vectorboot.Draft // below drafts/D
	Session uint64            // of sessions/ID
}

// Row is one file or directory of the tree. Exactly one of Show, Data, Link,
// Segment, Output and (Rows or Find) is set; Do may join Show.
type Row struct {
	Name string
	Doc  string      // what the file is: a line of vector_boot/README
	Mode fs.FileMode // permissions; for rows of a model an upper bound of the file's own

	Show    func(At) ([]byte, error)                // small text, rendered whole
	Data    func(At) (ggufview.View, error)         // content computed when read; size known up front
	Link    func(At) (string, error)                // target of a symbolic link
	Page    bool                                    // the control page of the model
	Segment bool                                    // the bytes of the loaded file
	Output  bool                                    // the live directory tree
	Do      doer                                    // runs one command that was written
	Edit    func(at At, trunc bool) (Editor, error) // opens for writing
	Stream  func(At, Caller) (Stream, error)        // opens a file whose reads wait
	Make    func(At, string) error                  // mkdir of a child
	Drop    func(At, string) error                  // rmdir of a child
	Rows    []*Row                                  // fixed children
	Find    func(At, string) (*Row, At, bool)       // further children by name
	List    func(At) []string                       // their names

	Gate  bool             // the draft's commands: who may write them can be changed
	Only  func(At) bool    // whether it exists; nil: always
	Xattr func(At) []Xattr // extended attributes

	Live  bool // changes by itself: never cached, each open takes a snapshot
	Gen   bool // exists only once a generation is loaded
	Keep  bool // Show is dear: it is called once per generation for the size, and again to read what the kernel dropped
	Bytes bool // made of tensor data: opening it brings a cold model into memory
	Quiet bool // not listed, so that tools which walk the tree do not wait on it; found by name all the same
	Large bool // may be far larger than what is worth caching
	Slow  bool // takes long to compute: a reader that is killed ends that
}

// Xattr is an extended attribute.
type Xattr struct{ Name, Value string }

// IsDir reports whether the row is a directory.
func (r *Row) IsDir() bool { return r.Rows != nil || r.Find != nil || r.Output }

// Entry is a row at a place: a node of the tree. It holds its generation until Close.
type Entry struct {
	*Row
	At At
	ID string // path, and the generation where the content depends on it
}

// Fleeting reports whether the kernel must ask for the name each time. It need
// not for directories: one that comes and goes by itself is told of with its model.
func (e Entry) Fleeting() bool {
	return e.Row.Link != nil || e.At.Draft != nil && !e.IsDir() || e.At.Session != 0 || e.Stream != nil
}

// Root is the top of the mount.
func Root(rt *vectorboot.Runtime) Entry { return Entry{Row: root, At: At{RT: rt}} }

// Close lets the generation go.
func (e Entry) Close() {
	if e.At.Gen != nil {
		e.At.Gen.Release()
	}
}

// Ino is the inode number: a pure function of path, generation and segment (a
// name that was removed and made again counts from 1 again). The top bit keeps it
// apart from the numbers of files in the store.
func (e Entry) Ino() uint64 { return xxhash.Sum64String(e.ID) | 1<<63 }

// Lookup finds a child; the caller closes it. The error is fs.ErrNotExist.
func (e Entry) Lookup(name string) (Entry, error) {
	row, at := e.child(name)
	if row == nil {
		return Entry{}, fs.ErrNotExist
	}
	id := path.Join(e.ID, name)
	if at.Draft != nil && e.At.Draft == nil {
		id += "#" + strconv.FormatUint(at.Draft.Serial, 10)
	}
	switch {
	case e.At.Gen != nil:
		at.Gen = e.At.Gen
		at.Gen.Acquire()
	case row.Gen:
		if at.Gen = at.RT.Acquire(at.Path); at.Gen == nil {
			return Entry{}, fs.ErrNotExist
		}
		id += "@" + strconv.FormatUint(at.Gen.N, 10)
		id += "." + strconv.FormatUint(segments(at.Gen), 36)
	}
	e = Entry{Row: row, At: at, ID: id}
	if !e.exists() {
		e.Close()
		return Entry{}, fs.ErrNotExist
	}
	return e, nil
}

// segments is a number for the files that a generation consists of.
func segments(g *vectorboot.Generation) uint64 {
	list := g.Segments()
	if len(list) == 1 {
		return list[0].Ino
	}
	var b []byte
	for _, s := range list {
		b = binary.LittleEndian.AppendUint64(b, s.Ino)
	}
	return xxhash.Sum64(b)
}

func (e Entry) exists() bool { return e.Only == nil || e.Only(e.At) }

func (e Entry) child(name string) (*Row, At) {
	for _, r := range e.Rows {
		if r.Name == name {
			return r, e.At
		}
	}
	if e.Find != nil {
		if r, at, ok := e.Find(e.At, name); ok {
			return r, at
		}
	}
	return nil, At{}
}

// Names lists the children that exist now.
func (e Entry) Names() []string {
	var out []string
	at := e.At
	if at.Gen == nil && at.Path != "" {
		if at.Gen = at.RT.Acquire(at.Path); at.Gen != nil {
			defer at.Gen.Release()
		}
	}
	for _, r := range e.Rows {
		if !r.Quiet && (!r.Gen || at.Gen != nil) && (Entry{Row: r, At: at}).exists() {
			out = append(out, r.Name)
		}
	}
	if e.List != nil {
		out = append(out, e.List(e.At)...)
	}
	return out
}

// Open is Content for a reader.
func (e Entry) Open(ctx context.Context) (ggufview.View, error) {
	if e.Bytes {
		if err := e.At.RT.WarmAll(ctx, e.At.Gen); err != nil {
			return nil, err
		}
	}
	return e.Content()
}

// Content is what reading the file gives, for every kind of row but links and
// directories; its size is the file's. Nothing is computed and nothing brought
// into memory before it is read.
func (e Entry) Content() (ggufview.View, error) {
	switch {
	case e.Page:
		return ggufview.Bytes(make([]byte, shm.PageSize)), nil // only its size: fs opens the page itself
	case e.Segment:
		return e.At.Gen, nil
	case e.Data != nil:
		return e.Data(e.At)
	case e.Show == nil:
		return ggufview.Bytes(nil), nil
	case e.Keep:
		return rendered(e.At.Gen, e.ID, func() ([]byte, error) { return e.Show(e.At) })
	}
	b, err := e.Show(e.At)
	return ggufview.Bytes(b), err
}

// Attr is what stat shows of a node.
type Attr struct {
	Mode     fs.FileMode
	Size     int64
	UID, GID uint32
	Time     time.Time
}

// Attr computes the attributes. The size is always exact, since rsync and tar
// copy nothing of a file that claims to be empty.
func (e Entry) Attr() (a Attr, err error) {
	defer vectorboot.Guard(&err)() // metadata is measured in the mapped file
	a = Attr{Mode: e.Mode, Time: e.At.RT.Start}
	if e.At.Gen != nil {
		a.Time = e.At.Gen.Loaded
	}
	e.own(&a)
	switch {
	case e.IsDir():
		a.Mode |= fs.ModeDir
	case e.Link != nil:
		a.Mode |= fs.ModeSymlink
		target, err := e.Link(e.At)
		a.Size = int64(len(target))
		return a, err
	default:
		v, err := e.Content()
		if err != nil {
			return a, err
		}
		a.Size = v.Size()
		if c, ok := v.(interface{ Close() }); ok {
			c.Close()
		}
	}
	return a, nil
}

// own gives everything below models/ the owner of the file it describes, and no
// permission that the file does not give: a directory may be entered by those
// who may read it.
func (e Entry) own(a *Attr) {
	if e.At.Path == "" {
		return
	}
	st, err := e.stat()
	if err != nil {
		return
	}
	if e.Gate {
		if p := e.At.Draft.Perm(); p != nil {
			a.UID, a.GID, a.Mode = p.UID, p.GID, fs.FileMode(p.Mode&0o777)
			return
		}
	}
	a.UID, a.GID = st.Uid, st.Gid
	perm := fs.FileMode(st.Mode & 0o777)
	if e.IsDir() && st.Mode&unix.S_IFMT == unix.S_IFREG {
		perm |= perm & 0o444 >> 2
	}
	a.Mode &= perm | fs.ModeType
}

// stat is the file that the entry describes. Of several files it is the first,
// with the permissions that all of them give.
func (e Entry) stat() (all unix.Stat_t, err error) {
	if e.At.Gen != nil {
		for i, s := range e.At.Gen.Segments() {
			st, err := s.Node.Stat()
			if err != nil {
				return all, err
			}
			narrow(&all, st, i == 0)
		}
		return all, nil
	}
	for i, p := range e.At.RT.Files(e.At.Path) {
		n, err := e.At.RT.Store().Live.Walk(p)
		if err != nil {
			return all, err
		}
		st, err := n.Stat()
		n.Close()
		if err != nil {
			return all, err
		}
		narrow(&all, st, i == 0)
	}
	return all, nil
}

// narrow takes from all what st does not give to the same owner and group.
func narrow(all *unix.Stat_t, st unix.Stat_t, first bool) {
	if first {
		*all = st
		return
	}
	if all.Uid != st.Uid {
		st.Mode &^= 0o700
	}
	if all.Gid != st.Gid {
		st.Mode &^= 0o070
	}
	all.Mode &= st.Mode | unix.S_IFMT
}
