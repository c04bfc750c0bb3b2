package ggufview

import (
	"cmp"
	"math"
	"slices"
)

// pass is what one walk over the tensor table finds out. It builds nothing for a
// tensor and only says whether all is well; what is wrong is explained by going
// back to it (explain, explainPlace).
type pass struct {
	offsets uint64 // all of them, or-ed
	end     int64  // the furthest end of a tensor from the start of the data
	last    int64  // where the tensor before ends
	sorted  bool   // so far none begins before the one before ends
}

// readTensors walks over n rows of the table.
func (f *File) readTensors(c *cursor, n int) (p pass) {
	if c.err != nil {
		return p
	}
	// Keys have moved on since the count was checked against the file.
	if c.room(8, "tensors", uint64(n), minTensorBytes, uint64(c.pos)-fixedBytes); c.err != nil {
		return p
	}
	fits := min(n, c.fits(minTensorBytes))
	start := c.pos
	x, rows := &f.table, c.b[start:]
	x.order, x.at, x.names = c.order, make([]uint32, 0, fits), newIndex(fits)
	hashes := make([]uint32, fits)
	p.sorted = true
	var t Tensor
	for i := range n {
		at := c.pos - start
		size := c.order.row(rows[at:], &t)
		if size == 0 {
			c.explain()
			return p
		}
		if at > maxTable {
			c.fail(c.pos, "a tensor table of more than %d bytes", maxTable)
			return p
		}
		x.at = append(x.at, uint32(at))
		hashes[i] = x.names.hash(t.Name)
		p.add(&t)
		c.pos += int64(size)
	}
	name := func(i int) string { return x.nameIn(rows, i) }
	if first, second, dup := x.names.addAll(hashes, name); dup {
		c.fail(start+int64(x.at[second]), "tensor name %s appears twice, first as number %d", quote(name(second)), first+1)
	}
	x.header = rows[:c.pos-start]
	f.HeaderBytes = c.pos
	return p
}

func (p *pass) add(t *Tensor) {
	p.offsets |= uint64(t.Offset)
	p.sorted = p.sorted && t.Offset >= p.last
	p.last = t.Offset + t.Bytes
	p.end = max(p.end, p.last)
}

// placeTensors checks that every tensor is aligned and lies within the file.
// Order and gaps are free.
func (f *File) placeTensors(c *cursor, p pass) {
	f.DataOffset = f.HeaderBytes
	if c.err != nil || f.NumTensors() == 0 {
		return
	}
	f.DataOffset = (f.HeaderBytes + f.Alignment - 1) &^ (f.Alignment - 1)
	if f.DataOffset > f.Size {
		c.missing(f.HeaderBytes, f.DataOffset, "padding before the tensor data")
		return
	}
	if p.offsets&uint64(f.Alignment-1) != 0 || p.end > f.Size-f.DataOffset {
		f.explainPlace(c)
	} else if !p.sorted {
		f.checkOverlap(c)
	}
}

// explainPlace finds the first tensor that is not where one can be.
func (f *File) explainPlace(c *cursor) {
	for i, at := range f.table.at {
		var t Tensor
		size := c.order.row(f.table.header[at:], &t)
		field := f.HeaderBytes - int64(len(f.table.header)) + int64(at) + int64(size) - 8
		if t.Offset&(f.Alignment-1) != 0 {
			c.fail(field, "offset %d is not a multiple of the alignment %d", t.Offset, f.Alignment)
		} else if t.Offset > math.MaxInt64-f.DataOffset-t.Bytes {
			c.fail(field, "%d bytes at offset %d are beyond any file", t.Bytes, t.Offset)
		} else if end := t.Offset + f.DataOffset + t.Bytes; end > f.Size {
			c.missing(field, end, "tensor data")
		}
		if c.err != nil {
			c.about("tensor", f.table.name(i))
			return
		}
	}
	c.fail(f.HeaderBytes, "the header changed while it was read")
}

// checkOverlap accepts tensors that share all of their bytes (tied weights),
// but not some: then one of the rows is not what its writer meant.
func (f *File) checkOverlap(c *cursor) {
	type place struct {
		off, bytes int64
		i          int
	}
	places := make([]place, 0, f.NumTensors())
	for i, t := range f.Tensors() {
		if t.Bytes > 0 {
			places = append(places, place{t.Offset, t.Bytes, i})
		}
	}
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(a.bytes, b.bytes), cmp.Compare(a.i, b.i))
	})
	for i, b := range places[min(1, len(places)):] {
		a := places[i]
		if b.off < a.off+a.bytes && (a.off != b.off || a.bytes != b.bytes) {
			at := f.HeaderBytes - int64(len(f.table.header)) + int64(f.table.at[max(a.i, b.i)])
			c.fail(at, "tensors %s and %s overlap in part", quote(f.table.name(a.i)), quote(f.table.name(b.i)))
			return
		}
	}
}
