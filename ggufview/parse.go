package ggufview

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"
)

// Limits that keep time and memory in proportion to the bytes that are really
// there. The first three go beyond any published file by a factor of ten or more.
const (
	maxEntries = 1 << 20 // keys, and tensors
	maxStrings = 1 << 26 // strings in all arrays together
	maxName    = 1 << 16 // bytes of a key or tensor name
	maxText    = 1 << 30 // bytes of a string value (ggml's limit)
	maxArray   = 1 << 30 // elements of an array (ggml's limit)
	maxHeader  = 1 << 30 // bytes of a header that Open copies
	maxTable   = 1 << 31 // bytes of a tensor table

	fixedBytes       = 24 // magic, version and the two counts
	minKVBytes       = 14 // one-byte key, one-byte value
	minTensorBytes   = 24 // empty name, no dimensions
	defaultAlignment = 32
)

// FormatError says why bytes are not a GGUF file that this package accepts.
type FormatError struct {
	Off int64  // byte offset in the file of the field that is wrong or can not be satisfied
	Msg string // one line
	// Incomplete: the bytes so far are a valid prefix and the file merely ends
	// too early, as one does that is still being written.
	Incomplete bool

	need int64 // if Incomplete, at least so many bytes are needed to go on
}

func (e *FormatError) Error() string { return fmt.Sprintf("at byte %d: %s", e.Off, e.Msg) }

// File is the parsed header of a GGUF file. It is immutable and safe for
// concurrent use. Keys and names are copies; string values and arrays are read
// from the bytes given to Parse, which must stay mapped while they are used.
type File struct {
	Version     uint32
	BigEndian   bool
	Alignment   int64 // bytes; a power of two
	DataOffset  int64 // absolute offset of the tensor data
	HeaderBytes int64 // where the tensor infos end
	Size        int64 // bytes of the whole file
	KVs         []KV  // in file order

	b     []byte // the header
	keys  index
	table table
}

// Tensor is one row of the tensor table. Its data lies within the file; it may
// share bytes with another tensor.
type Tensor struct {
	Name     string
	Type     Type
	NE       [4]int64 // elements per dimension in ggml's order (fastest first); unused ones are 1
	Dims     int      // dimensions used, 0 (a scalar) to 4
	Offset   int64    // absolute, bytes
	Bytes    int64    // bytes stored
	Elements int64
	Index    int // position in the table
}

// Shape is the dimensions in NumPy's order, slowest first; empty for a scalar.
func (t *Tensor) Shape() []int64 {
	shape := slices.Clone(t.NE[:t.Dims])
	slices.Reverse(shape)
	return shape
}

// Parse reads the header from b, which holds the first len(b) bytes of a file
// of size bytes (usually b is the whole mapped file). Tensor data is not read.
// The error is a *FormatError.
func Parse(b []byte, size int64) (*File, error) {
	f, err := parse(b, size)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Open reads only as much of r as the header needs, for files that are not
// mapped; the File then owns its copy. The error is a *FormatError, or what r
// returned.
func Open(r io.ReaderAt, size int64) (*File, error) {
	size = max(size, 0)
	for window := int64(256 << 10); ; window *= 4 {
		b := make([]byte, min(window, size, maxHeader))
		if n, err := r.ReadAt(b, 0); n < len(b) {
			return nil, fmt.Errorf("read the first %d bytes: %w", len(b), err)
		}
		f, err := parse(b, size)
		switch {
		case err == nil:
			f.b = slices.Clone(f.b)
			f.table.header = f.b[len(f.b)-len(f.table.header):]
			return f, nil
		case !err.Incomplete || err.need > size:
			return nil, err
		case err.need > maxHeader:
			return nil, &FormatError{Off: err.Off, Msg: fmt.Sprintf("header of more than %d bytes", maxHeader)}
		}
		window = max(window, err.need/4)
	}
}

func parse(b []byte, size int64) (*File, *FormatError) {
	size = max(size, 0)
	c := &cursor{b: b[:min(int64(len(b)), size)], size: size}
	f := &File{Size: size, Alignment: defaultAlignment}
	nTensors, nKVs := c.fixed(f)
	f.readKVs(c, nKVs)
	f.readAlignment(c)
	pass := f.readTensors(c, nTensors)
	f.placeTensors(c, pass)
	if c.err != nil {
		return nil, c.err
	}
	f.b = c.b[:f.HeaderBytes:f.HeaderBytes]
	return f, nil
}

// fixed reads the first 24 bytes. Both counts are bounded by the limits and by
// what the file can hold.
func (c *cursor) fixed(f *File) (nTensors, nKVs int) {
	if head := c.b[:min(4, len(c.b))]; string(head) != "GGUF"[:len(head)] {
		c.fail(0, "magic is %q, not \"GGUF\"", head)
	}
	c.take(4, "magic")
	v := c.u32("version")
	if v&0xffff == 0 { // a small number in the other byte order
		c.order, v = true, bits.ReverseBytes32(v)
	}
	if c.err == nil && v != 2 && v != 3 {
		c.fail(4, "GGUF version %d is not supported, only 2 and 3", v)
	}
	f.Version, f.BigEndian = v, bool(c.order)
	t, k := c.u64("tensor count"), c.u64("key count")
	c.limit(8, "tensors", t, maxEntries)
	c.limit(16, "keys", k, maxEntries)
	c.room(16, "keys", k, minKVBytes, 0)
	c.room(8, "tensors", t, minTensorBytes, k*minKVBytes)
	return int(t), int(k)
}

func (f *File) readKVs(c *cursor, n int) {
	if c.err != nil {
		return
	}
	fits := min(n, c.fits(minKVBytes)) // fewer than n if b is only a window
	f.KVs, f.keys = make([]KV, 0, fits), newIndex(fits)
	for i := range n {
		at := c.pos
		kv := c.kv()
		if c.err != nil {
			c.about("key", kv.Key)
			return
		}
		f.KVs = append(f.KVs, kv)
		if first, dup := f.keys.add(kv.Key, i, f.key); dup {
			c.fail(at, "key %s appears twice, first as number %d", quote(kv.Key), first+1)
			return
		}
	}
}

func (f *File) key(i int) string { return f.KVs[i].Key }

// kv reads one key, its type and the extent of its value.
func (c *cursor) kv() KV {
	at := c.pos
	kv := KV{Key: c.name("key"), Count: 1}
	if kv.Key == "" && c.err == nil {
		c.fail(at, "empty key")
	}
	kv.Type = ValueType(c.u32("value type"))
	kv.Off, kv.Elem = c.pos, kv.Type
	switch {
	case c.err != nil:
	case kv.Type == ValueArray:
		c.array(&kv)
	case kv.Type == ValueString:
		c.text("string", maxText)
	case !kv.Type.Known():
		c.fail(kv.Off-4, "%v is not a GGUF value type", kv.Type)
	default:
		c.take(uint64(kv.Type.Bytes()), "value")
	}
	kv.end = c.pos
	return kv
}

func (c *cursor) array(kv *KV) {
	kv.Elem = ValueType(c.u32("element type"))
	n := c.u64("element count")
	c.limit(kv.Off+4, "elements", n, maxArray)
	kv.Count = int64(n)
	switch {
	case c.err != nil:
	case kv.Elem == ValueArray:
		c.fail(kv.Off, "array of arrays: not supported, nor by llama.cpp")
	case !kv.Elem.Known():
		c.fail(kv.Off, "%v is not a GGUF value type", kv.Elem)
	case kv.Elem == ValueString:
		c.strings(kv.Off+4, n)
	default:
		c.takeAt(kv.Off+4, n*uint64(kv.Elem.Bytes()), "array")
	}
}

// readAlignment applies general.alignment, which ggml takes only as a uint32.
func (f *File) readAlignment(c *cursor) {
	kv, ok := f.Find("general.alignment")
	if c.err != nil || !ok {
		return
	}
	if kv.Type != ValueUint32 {
		c.fail(kv.Off, "general.alignment is %v, not uint32", kv.Type)
		return
	}
	a := c.order.u32(c.b[kv.Off:kv.end])
	if bits.OnesCount32(a) != 1 {
		c.fail(kv.Off, "general.alignment %d is not a power of two", a)
	}
	f.Alignment = int64(a)
}

// explain finds out what is wrong with the row of the tensor table that begins
// at the cursor.
func (c *cursor) explain() {
	name := c.name("tensor name")
	c.explainFields()
	if c.err == nil {
		c.fail(c.pos, "the header changed while it was read")
	}
	c.about("tensor", name)
}

func (c *cursor) explainFields() {
	at := c.pos
	dims := c.u32("number of dimensions")
	if dims > 4 {
		c.fail(at, "%d dimensions, at most 4 are possible", dims)
	}
	if c.err != nil {
		return
	}
	at = c.pos
	ne := [4]int64{1, 1, 1, 1}
	for i := range dims {
		ne[i] = int64(c.u64("dimension"))
	}
	typ := Type(c.u32("tensor type"))
	offAt := c.pos
	off := c.u64("tensor offset")
	if c.err != nil {
		return
	}
	if !typ.Known() {
		c.fail(offAt-4, "%v is not a ggml tensor type", typ)
		return
	}
	_, bytes, why := storedSize(typ, &ne)
	if why != "" {
		c.fail(at, "shape %v of %v: %s", ne[:dims], typ, why)
		return
	}
	if off > math.MaxInt64-uint64(bytes) {
		c.fail(offAt, "offset %d is beyond any file", off)
	}
}

// storedSize is the number of elements and bytes of a tensor, or the reason why
// there can be none. A zero dimension does not excuse an overflow in the others.
func storedSize(t Type, ne *[4]int64) (elements, bytes int64, why string) {
	if per := int64(types[t].block); ne[2] == 1 && ne[3] == 1 && uint64(ne[0]|ne[1]) < 1<<29 && ne[0]&(per-1) == 0 {
		elements = ne[0] * ne[1] // nothing can overflow; a block is a power of two
		return elements, elements >> bits.TrailingZeros64(uint64(per)) * int64(types[t].bytes), ""
	}
	return anySize(t, ne)
}

func anySize(t Type, ne *[4]int64) (elements, bytes int64, why string) {
	elements = 1
	empty := false
	for _, n := range ne {
		if n < 0 {
			return 0, 0, "a dimension is negative or beyond 2^63"
		}
		empty = empty || n == 0
		if elements = mulInt64(elements, max(n, 1)); elements < 0 {
			return 0, 0, "more than 2^63 elements"
		}
	}
	blocks := elements
	if per := int64(t.BlockElements()); per > 1 {
		if ne[0]%per != 0 {
			return 0, 0, fmt.Sprintf("rows are not whole blocks of %d elements", per)
		}
		blocks = elements / per
	}
	if bytes = mulInt64(blocks, int64(t.BlockBytes())); bytes < 0 {
		return 0, 0, "more than 2^63 bytes"
	}
	if empty {
		return 0, 0, ""
	}
	return elements, bytes, ""
}

// mulInt64 multiplies two numbers that are not negative; -1 means overflow.
func mulInt64(a, b int64) int64 {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	if hi != 0 || lo > math.MaxInt64 {
		return -1
	}
	return int64(lo)
}

// Find returns the key-value pair with this key.
func (f *File) Find(key string) (*KV, bool) {
	if i, ok := f.keys.find(key, f.key); ok {
		return &f.KVs[i], true
	}
	return nil, false
}

// Architecture is the value of general.architecture, "" if there is none.
func (f *File) Architecture() string {
	s, _ := f.Str("general.architecture")
	return s
}

// ByteOrder is the order of every number in the file, tensor data included.
func (f *File) ByteOrder() binary.ByteOrder {
	if f.BigEndian {
		return binary.BigEndian
	}
	return binary.LittleEndian
}
