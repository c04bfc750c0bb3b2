package ggufview

import (
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"
	"unsafe"
)

// View is a file's content computed on read: nothing of it is kept in memory,
// its size is known before, and any window of it can be read by any number of
// goroutines at once.
type View interface {
	io.ReaderAt
	Size() int64
}

// Slicer is a View whose bytes are in memory already. Slice returns n of them
// from off on without a copy, or false if they are not in one piece. The caller
// must not write to them and not keep them longer than the memory is mapped.
type Slicer interface {
	Slice(off, n int64) ([]byte, bool)
}

// clip cuts p to what a view of the given size holds from off on. The error is
// the one that io.ReaderAt asks for when everything in the shorter p was read.
func clip(size int64, p []byte, off int64) ([]byte, error) {
	switch {
	case off < 0:
		return nil, errors.New("negative offset")
	case off >= size:
		return nil, io.EOF
	case int64(len(p)) > size-off:
		return p[:size-off], io.EOF
	}
	return p, nil
}

// readFull fills p from a source that promised to have so much.
func readFull(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("reading %d bytes at %d: %w", len(p), off, err)
}

// slice asks a view for a piece of memory.
func slice(v View, off, n int64) ([]byte, bool) {
	if s, ok := v.(Slicer); ok {
		return s.Slice(off, n)
	}
	return nil, false
}

type bytesView []byte

var _ Slicer = bytesView(nil)

// Bytes is the view of bytes in memory, which it keeps and never changes.
func Bytes(b []byte) View { return bytesView(b) }

func (b bytesView) Size() int64 { return int64(len(b)) }

func (b bytesView) ReadAt(p []byte, off int64) (int, error) {
	p, eof := clip(b.Size(), p, off)
	if len(p) == 0 {
		return 0, eof
	}
	return copy(p, b[off:]), eof
}

func (b bytesView) Slice(off, n int64) ([]byte, bool) {
	if off < 0 || n < 0 || n > b.Size()-off {
		return nil, false
	}
	return b[off : off+n : off+n], true
}

type section struct {
	src    View
	off, n int64
}

var _ Slicer = (*section)(nil)

// Section is the part of src of n bytes from off on; src must have that much.
func Section(src View, off, n int64) View { return &section{src, off, n} }

func (s *section) Size() int64 { return s.n }

func (s *section) ReadAt(p []byte, off int64) (int, error) {
	p, eof := clip(s.n, p, off)
	if len(p) == 0 {
		return 0, eof
	}
	if err := readFull(s.src, p, s.off+off); err != nil {
		return 0, err
	}
	return len(p), eof
}

func (s *section) Slice(off, n int64) ([]byte, bool) {
	if off < 0 || n < 0 || n > s.n-off {
		return nil, false
	}
	return slice(s.src, s.off+off, n)
}

type concat struct {
	parts []View
	ends  []int64 // ends[i] is the offset behind parts[i]
}

var _ Slicer = (*concat)(nil)

// Concat is its parts one behind the other. A read costs a binary search.
func Concat(parts ...View) View {
	c := &concat{parts, make([]int64, len(parts))}
	var end int64
	for i, p := range parts {
		end += p.Size()
		c.ends[i] = end
	}
	return c
}

func (c *concat) Size() int64 {
	if len(c.ends) == 0 {
		return 0
	}
	return c.ends[len(c.ends)-1]
}

// find is the part that holds the byte at off, and where the part begins.
func (c *concat) find(off int64) (i int, start int64) {
	i = sort.Search(len(c.ends), func(i int) bool { return c.ends[i] > off })
	return i, c.ends[i] - c.parts[i].Size()
}

func (c *concat) ReadAt(p []byte, off int64) (int, error) {
	p, eof := clip(c.Size(), p, off)
	if len(p) == 0 {
		return 0, eof
	}
	done := 0
	for i, start := c.find(off); done < len(p); i++ {
		n := int(min(int64(len(p)-done), c.ends[i]-off))
		if err := readFull(c.parts[i], p[done:done+n], off-start); err != nil {
			return done, err
		}
		done, off, start = done+n, off+int64(n), c.ends[i]
	}
	return done, eof
}

func (c *concat) Slice(off, n int64) ([]byte, bool) {
	if off < 0 || n <= 0 || n > c.Size()-off {
		return nil, false
	}
	i, start := c.find(off)
	return slice(c.parts[i], off-start, n)
}

// computed is a view whose blocks are computed from stored blocks.
type computed struct {
	src     View
	in, out int // bytes of a stored block, and of what is computed from it
	chunk   int // blocks converted at once
	size    int64
	convert func(dst, src []byte) error // whole blocks; dst is aligned to four bytes
}

// scratch is what one read needs beside the caller's buffer.
type scratch struct {
	in  [chunkBytes]byte
	out [chunkBytes / 4]float32 // floats for their alignment
}

var scratchPool = sync.Pool{New: func() any { return new(scratch) }}

func wholeBlocks(t Type, src View) error {
	if src.Size()%int64(types[t].bytes) != 0 {
		return fmt.Errorf("%d bytes are not whole blocks of %v", src.Size(), t)
	}
	return nil
}

// newComputed makes a view of src, which holds values of type t, with out bytes
// for each of its blocks.
func newComputed(t Type, src View, out int, convert func(dst, src []byte) error) (View, error) {
	if err := wholeBlocks(t, src); err != nil {
		return nil, err
	}
	in := types[t].bytes
	chunk := min(chunkBytes/in, chunkBytes/out, chunkBytes/4/types[t].block)
	return &computed{src, in, out, chunk, src.Size() / int64(in) * int64(out), convert}, nil
}

func (v *computed) Size() int64 { return v.size }

// ReadAt converts whole blocks straight into p where p is aligned; the blocks at
// the edges of the window, and everything if p is not aligned, take a detour.
func (v *computed) ReadAt(p []byte, off int64) (int, error) {
	p, eof := clip(v.size, p, off)
	if len(p) == 0 {
		return 0, eof
	}
	s := scratchPool.Get().(*scratch)
	defer scratchPool.Put(s)
	for done := 0; done < len(p); {
		n, err := v.step(s, p[done:], off+int64(done))
		if err != nil {
			return done, err
		}
		done += n
	}
	return len(p), eof
}

// step reads the beginning of p, at least a byte and at most a chunk.
func (v *computed) step(s *scratch, p []byte, off int64) (int, error) {
	block, skip := off/int64(v.out), int(off%int64(v.out))
	blocks := min(len(p)/v.out, v.chunk)
	if skip != 0 || blocks == 0 {
		blocks = 1
	}
	in, n := blocks*v.in, blocks*v.out
	stored, ok := slice(v.src, block*int64(v.in), int64(in))
	if !ok {
		stored = s.in[:in]
		if err := readFull(v.src, stored, block*int64(v.in)); err != nil {
			return 0, err
		}
	}
	if skip == 0 && n <= len(p) && uintptr(unsafe.Pointer(unsafe.SliceData(p)))%4 == 0 {
		return n, v.convert(p[:n], stored)
	}
	out := floatBytes(s.out[:])[:n]
	if err := v.convert(out, stored); err != nil {
		return 0, err
	}
	return copy(p, out[skip:]), nil
}

// F32View is the little-endian float32 values of src, whole blocks of type t.
// Types without a dequantiser are an error.
func F32View(t Type, bigEndian bool, src View) (View, error) {
	if t == F32 {
		return nativeView(t, bigEndian, src)
	}
	if !t.CanDequantize() {
		return nil, fmt.Errorf("%v has no dequantiser", t)
	}
	return newComputed(t, src, 4*types[t].block, func(dst, src []byte) error {
		values := unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(dst))), len(dst)/4)
		if err := Dequantize(t, bigEndian, values, src); err != nil {
			return err
		}
		if !littleHost {
			types[F32].wide.swap(dst, 4)
		}
		return nil
	})
}

// BF16View is F32View with each value rounded to bfloat16, nearest even.
func BF16View(t Type, bigEndian bool, src View) (View, error) {
	if t == BF16 {
		return nativeView(t, bigEndian, src)
	}
	if !t.CanDequantize() {
		return nil, fmt.Errorf("%v has no dequantiser", t)
	}
	return newComputed(t, src, 2*types[t].block, func(dst, src []byte) error {
		s := scratchPool.Get().(*scratch)
		defer scratchPool.Put(s)
		values := s.out[:len(dst)/2]
		if err := Dequantize(t, bigEndian, values, src); err != nil {
			return err
		}
		quantBF16(dst, values)
		return nil
	})
}

// nativeView is the stored values of src with the low byte first.
func nativeView(t Type, bigEndian bool, src View) (View, error) {
	info := &types[t]
	if !bigEndian || info.wide == nil {
		return src, wholeBlocks(t, src)
	}
	return newComputed(t, src, info.bytes, func(dst, src []byte) error {
		copy(dst, src)
		info.wide.swap(dst, info.bytes)
		return nil
	})
}
