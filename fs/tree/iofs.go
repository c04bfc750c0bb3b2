package tree

import (
	"context"
	"io"
	"io/fs"
	"path"
	"sort"
	"strings"
	"time"

	"vbootfs/ggufview"
	"vbootfs/vectorboot"
)

// FS shows the tree below vector_boot as an io/fs file system. The output
// directory is not part of it: that one is real files.
type FS struct{ RT *vectorboot.Runtime }

var (
	_ fs.ReadLinkFS = FS{}
	_ fs.StatFS     = FS{}
)

// walk opens the entry at name without following links; the caller closes it.
func (f FS) walk(op, name string) (Entry, error) {
	if !fs.ValidPath(name) {
		return Entry{}, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	e, err := Root(f.RT).Lookup("vector_boot")
	for _, part := range strings.Split(name, "/") {
		if part == "." || err != nil {
			continue
		}
		var next Entry
		next, err = e.Lookup(part)
		e.Close()
		e = next
	}
	if err != nil {
		return Entry{}, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return e, nil
}

// Open opens a file or directory, following links.
func (f FS) Open(name string) (fs.File, error) {
	for range 8 {
		e, err := f.walk("open", name)
		if err != nil {
			return nil, err
		}
		if e.Row.Link == nil {
			return openFile(e, name)
		}
		target, err := e.Row.Link(e.At)
		e.Close()
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		name = path.Join(path.Dir(name), target)
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
}

func openFile(e Entry, name string) (fs.File, error) {
	a, err := e.Attr()
	if err == nil && e.IsDir() {
		return &dir{file: file{e: e, a: a}}, nil
	}
	var v ggufview.View
	if err == nil {
		v, err = e.Open(context.Background())
	}
	if err != nil {
		e.Close()
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &file{e: e, a: a, v: v, r: io.NewSectionReader(v, 0, v.Size())}, nil
}

// Stat describes a name, following links.
func (f FS) Stat(name string) (fs.FileInfo, error) {
	h, err := f.Open(name)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	return h.Stat()
}

// Lstat describes a name without following a link.
func (f FS) Lstat(name string) (fs.FileInfo, error) {
	e, err := f.walk("lstat", name)
	if err != nil {
		return nil, err
	}
	defer e.Close()
	a, err := e.Attr()
	return info{path.Base(name), a}, err
}

// ReadLink is the target of a link.
func (f FS) ReadLink(name string) (string, error) {
	e, err := f.walk("readlink", name)
	if err != nil {
		return "", err
	}
	defer e.Close()
	if e.Row.Link == nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return e.Row.Link(e.At)
}

type file struct {
	e      Entry
	a      Attr
	v      ggufview.View // nil of a directory
	r      *io.SectionReader
	closed bool
}

// Close lets the entry go; a second one does nothing.
func (f *file) Close() error {
	if !f.closed {
		if c, ok := f.v.(interface{ Close() }); ok {
			c.Close()
		}
		f.e.Close()
		f.closed = true
	}
	return nil
}

func (f *file) Stat() (fs.FileInfo, error)                { return info{path.Base("/" + f.e.name()), f.a}, nil }
func (f *file) Read(p []byte) (int, error)                { return f.r.Read(p) }
func (f *file) ReadAt(p []byte, off int64) (int, error)   { return f.r.ReadAt(p, off) }
func (f *file) Seek(off int64, whence int) (int64, error) { return f.r.Seek(off, whence) }

// name is the last part of the path without the generation.
func (e Entry) name() string {
	base := path.Base(e.ID)
	if e.Row.Name != "" {
		base = e.Row.Name
	} else if i := strings.LastIndexByte(base, '@'); i >= 0 && e.Row.Gen {
		base = base[:i]
	}
	if base == "vector_boot" {
		return "."
	}
	return base
}

type dir struct {
	file
	at   int
	list []fs.DirEntry
}

func (d *dir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.e.name(), Err: fs.ErrInvalid}
}

func (d *dir) ReadDir(n int) ([]fs.DirEntry, error) {
	if d.list == nil {
		if err := d.fill(); err != nil {
			return nil, err
		}
	}
	rest := d.list[d.at:]
	if n > 0 && len(rest) == 0 {
		return nil, io.EOF
	}
	if n > 0 && n < len(rest) {
		rest = rest[:n]
	}
	d.at += len(rest)
	return rest, nil
}

func (d *dir) fill() error {
	names := d.e.Names()
	sort.Strings(names)
	d.list = []fs.DirEntry{}
	for _, name := range names {
		c, err := d.e.Lookup(name)
		if err != nil {
			continue // went away
		}
		a, err := c.Attr()
		c.Close()
		if err != nil {
			return err
		}
		d.list = append(d.list, fs.FileInfoToDirEntry(info{name, a}))
	}
	return nil
}

type info struct {
	name string
	a    Attr
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.a.Size }
func (i info) Mode() fs.FileMode  { return i.a.Mode }
func (i info) ModTime() time.Time { return i.a.Time }
func (i info) IsDir() bool        { return i.a.Mode.IsDir() }
func (i info) Sys() any           { return nil }
