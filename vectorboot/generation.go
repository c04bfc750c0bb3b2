package vectorboot

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"vbootfs/ggufview"
	"vbootfs/shm"
)

// Segment is the shared memory of one file: its inode and a read-only mapping.
// The last holder's drop unmaps it.
type Segment struct {
	Ino  uint64
	Node *shm.Node // owned
	m    *shm.Mapping
	refs atomic.Int32
}

func (s *Segment) drop() {
	if s.refs.Add(-1) == 0 {
		if s.m != nil {
			s.m.Unmap()
		}
		s.Node.Close()
	}
}

// Generation is one version of a model: a segment and what its header says. Of a
// model in several files it has no segment, but their generations.
// Everything in it is immutable after Publish.
type Generation struct {
	N      uint64
	Path   string // the model's path when this generation was current
	Seg    *Segment
	Info   *ggufview.File
	Cold   bool // the bytes are not in memory: Seg is a placeholder
	Loaded time.Time
	Took   time.Duration // from the end of writing to readable, or of filling

	m     *Model        // whose it is, nil of a whole
	parts []*Generation // of a whole: its shards, held while refs is not 0
	view  ggufview.View // of a whole: its bytes

	refs   atomic.Int32
	memo   sync.Map // results of Once, by key
	sum    sync.Once
	sha    string
	shaErr error
}

// Judge maps a file and reads its header. It fails with *ggufview.FormatError
// when the file is no whole valid GGUF. The generation belongs to the caller,
// who publishes or releases it; the node stays the caller's.
func Judge(node *shm.Node) (*Generation, error) {
	begin := time.Now()
	own, err := node.Dup()
	if err != nil {
		return nil, err
	}
	m, err := own.Map()
	if err != nil {
		own.Close()
		return nil, err
	}
	info, err := parse(m.Bytes, int64(len(m.Bytes)))
	if err != nil {
		m.Unmap()
		own.Close()
		return nil, err
	}
	return newGeneration(&Segment{Ino: own.Ino, Node: own, m: m}, info, begin), nil
}

func newGeneration(seg *Segment, info *ggufview.File, begin time.Time) *Generation {
	now := time.Now()
	g := &Generation{Seg: seg, Info: info, Loaded: now, Took: now.Sub(begin)}
	g.refs.Store(1)
	seg.refs.Store(1)
	return g
}

// parse turns a fault in the mapping (somebody cut the file meanwhile) into an error.
func parse(b []byte, size int64) (f *ggufview.File, err error) {
	defer Guard(&err)()
	return ggufview.Parse(b, size)
}

// Guard makes memory faults of mapped files errors of the goroutine that reads
// them, instead of the end of the process:
//
//	defer Guard(&err)()
func Guard(err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			if _, fault := r.(interface{ Addr() uintptr }); !fault {
				panic(r)
			}
			*err = fmt.Errorf("the file shrank while it was read: %v", r)
		}
	}
}

// Acquire adds a holder.
func (g *Generation) Acquire() { g.refs.Add(1) }

// Release drops a holder; the last one ends the mapping.
func (g *Generation) Release() {
	if g.refs.Add(-1) > 0 {
		return
	}
	if g.Seg == nil {
		release(g.parts)
		return
	}
	g.Seg.drop()
}

// clone shares the segment; the registry's hold on g passes to the clone.
func (g *Generation) clone() *Generation {
	g.Seg.refs.Add(1)
	c := &Generation{N: g.N, Path: g.Path, m: g.m, Seg: g.Seg, Info: g.Info, Cold: g.Cold, Loaded: g.Loaded, Took: g.Took}
	c.refs.Store(1)
	g.Release()
	return c
}

// renumbered is the next generation of the same segment. Unlike renamed it
// leaves the registry's hold on g alone.
func (g *Generation) renumbered(n uint64) *Generation {
	g.Acquire()
	c := g.clone()
	c.N, c.Loaded = n, time.Now()
	return c
}

// note writes a number on the segment, for the next start after a crash.
func (s *Segment) note(attr string, n uint64) {
	_ = s.Node.Setxattr(attr, strconv.AppendUint(nil, n, 10), 0) // without attributes numbering starts over
}

func (g *Generation) renamed(p string) *Generation { c := g.clone(); c.Path = p; return c }

func (g *Generation) state() State {
	if g.Cold {
		return Cold
	}
	return Loaded
}

// Once computes something once per generation. What it is, is named by key.
func (g *Generation) Once(key any, compute func() (any, error)) (any, error) {
	if v, ok := g.memo.Load(key); ok {
		return v, nil
	}
	v, err := compute()
	if err == nil {
		v, _ = g.memo.LoadOrStore(key, v)
	}
	return v, err
}

// Shards are the generations that a whole consists of; they are held with it.
func (g *Generation) Shards() []*Generation { return g.parts }

// Segments are the files that hold the bytes.
func (g *Generation) Segments() []*Segment {
	if g.Seg != nil {
		return []*Segment{g.Seg}
	}
	out := make([]*Segment, len(g.parts))
	for i, part := range g.parts {
		out[i] = part.Seg
	}
	return out
}

// Uses reports whether the file of this inode holds bytes of the generation.
func (g *Generation) Uses(ino uint64) bool {
	return slices.ContainsFunc(g.Segments(), func(s *Segment) bool { return s.Ino == ino })
}

// Bytes is the mapped file; nil while cold, and of a whole.
func (g *Generation) Bytes() []byte {
	if g.Seg == nil || g.Seg.m == nil {
		return nil
	}
	return g.Seg.m.Bytes
}

// Slice gives the mapped bytes of a range (ggufview.Slicer).
func (g *Generation) Slice(off, n int64) ([]byte, bool) {
	if g.Seg == nil {
		return g.view.(ggufview.Slicer).Slice(off, n)
	}
	b := g.Bytes()
	if off < 0 || n < 0 || off > int64(len(b)) || n > int64(len(b))-off {
		return nil, false
	}
	return b[off : off+n : off+n], true
}

// ReadAt reads the file's bytes.
func (g *Generation) ReadAt(p []byte, off int64) (int, error) {
	if g.Seg == nil {
		return g.view.ReadAt(p, off)
	}
	return g.Seg.Node.ReadAt(p, off)
}

// Size is the file's size in bytes.
func (g *Generation) Size() int64 { return g.Info.Size }

// SHA256 is the hash of the whole file in hex, computed when first asked for.
func (g *Generation) SHA256() (string, error) {
	g.sum.Do(func() {
		h := sha256.New()
		_, g.shaErr = io.Copy(h, io.NewSectionReader(g, 0, g.Size()))
		g.sha = hex.EncodeToString(h.Sum(nil))
	})
	return g.sha, g.shaErr
}
