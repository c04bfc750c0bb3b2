package ggufview

import (
	"bytes"
	"iter"
	"math"
	"runtime/debug"
	"sync"
	"unsafe"
)

// table is the tensors of a file as the header has them: the bytes of the rows,
// where each begins, and an index of the names. A row is decoded each time that
// somebody asks, which takes 20 ns; of a tensor nothing is kept but its row and
// 12 to 20 bytes. The rows are copied when they are first asked for; from then on
// they never change, and names are slices of the copy.
type table struct {
	header []byte // the rows where Parse found them
	order  byteOrder
	at     []uint32 // by position: where the row begins
	names  index

	copied sync.Once
	copy   []byte
}

// rows is the copy.
func (x *table) rows() []byte {
	x.copied.Do(func() {
		x.copy = make([]byte, len(x.header))
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() {
			// A fault: the file was cut, and there are no rows. Nothing else can happen.
			if r := recover(); r != nil {
				copy(x.copy, bytes.Repeat([]byte{0xff}, len(x.copy)))
			}
		}()
		copy(x.copy, x.header)
	})
	return x.copy
}

// NumTensors is the number of tensors.
func (f *File) NumTensors() int { return len(f.table.at) }

// TensorAt is the tensor at position i of the table, in file order.
func (f *File) TensorAt(i int) Tensor {
	t := Tensor{Index: i}
	n := f.table.order.row(f.table.rows()[f.table.at[i]:], &t)
	if n == 0 || t.Offset > math.MaxInt64-f.DataOffset-t.Bytes || t.Offset+f.DataOffset+t.Bytes > f.Size {
		// Somebody changed the header between the check and the copy.
		return Tensor{Index: i, Type: I8, Dims: 1, NE: [4]int64{0, 1, 1, 1}, Offset: f.DataOffset}
	}
	t.Offset += f.DataOffset
	return t
}

// Tensors iterates over the tensors in file order.
func (f *File) Tensors() iter.Seq2[int, Tensor] {
	return func(yield func(int, Tensor) bool) {
		for i := range f.table.at {
			if !yield(i, f.TensorAt(i)) {
				return
			}
		}
	}
}

// FindTensor returns the position of the tensor with this name.
func (f *File) FindTensor(name string) (int, bool) { return f.table.names.find(name, f.table.name) }

// Tensor returns the tensor with this name.
func (f *File) Tensor(name string) (*Tensor, bool) {
	i, ok := f.FindTensor(name)
	if !ok {
		return nil, false
	}
	t := f.TensorAt(i)
	return &t, true
}

// name is the name in row i.
func (x *table) name(i int) string { return x.nameIn(x.rows(), i) }

func (x *table) nameIn(rows []byte, i int) string {
	b := rows[x.at[i]:]
	n := x.order.u64(b)
	if n > uint64(len(b)-8) { // changed, as above
		return ""
	}
	return unsafe.String(unsafe.SliceData(b[8:]), n)
}

// row decodes the first row of b with its offset as it is stored, and returns
// its length; 0 if it is not a whole row that Parse accepts. The name is a slice
// of b.
func (o byteOrder) row(b []byte, t *Tensor) int {
	if len(b) < minTensorBytes {
		return 0
	}
	n := o.u64(b)
	if n > maxName || n > uint64(len(b)-minTensorBytes) {
		return 0
	}
	t.Name = unsafe.String(&b[8], n)
	p := b[8+n:]
	dims := o.u32(p)
	if dims > 4 || len(p) < int(16+8*dims) {
		return 0
	}
	t.Dims, t.NE = int(dims), [4]int64{1, 1, 1, 1}
	for i := range t.Dims {
		t.NE[i] = int64(o.u64(p[4+8*i:]))
	}
	p = p[4+8*dims:]
	t.Type = Type(o.u32(p))
	if !t.Type.Known() {
		return 0
	}
	var why string
	t.Elements, t.Bytes, why = storedSize(t.Type, &t.NE)
	off := o.u64(p[4:])
	if why != "" || off > math.MaxInt64-uint64(t.Bytes) {
		return 0
	}
	t.Offset = int64(off)
	return int(8 + n + 16 + 8*uint64(dims))
}
