package ggufview

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"reflect"
)

// Spec describes a GGUF file to be written, as a literal in a test or as a
// change of an existing file. Tensors are laid out in order without gaps.
type Spec struct {
	Version   uint32 // 0 means 3
	BigEndian bool
	KV        []SpecKV // general.alignment, a uint32, sets the alignment
	Tensors   []SpecTensor
}

// SpecKV is a key with a Go value: bool, string, a sized integer or float, or a
// slice of these. []any makes an array of the type of its first element, also
// an array of arrays, which Parse refuses.
type SpecKV struct {
	Key   string
	Value any
}

// SpecTensor is a tensor with its data as stored, in the byte order of the file.
type SpecTensor struct {
	Name string
	Type Type
	NE   []int64 // at most 4, ggml's order; none is a scalar
	Data []byte  // must have the right size; nil means Fill, or zeros if that is nil too
	// Fill writes the stored bytes from byte off on; off and len(p) are whole blocks.
	Fill func(p []byte, off int64)
}

// Bytes is the file in memory.
func (s *Spec) Bytes() ([]byte, error) {
	var buf bytes.Buffer
	_, err := s.WriteTo(&buf)
	return buf.Bytes(), err
}

// WriteTo writes the file, tensor data in pieces of at most 1 MiB. It fails for
// values that GGUF can not hold, and with what w returns.
func (s *Spec) WriteTo(w io.Writer) (int64, error) {
	e := encoder{spec: s, version: s.Version, align: defaultAlignment}
	if s.BigEndian {
		e.order = binary.BigEndian
	} else {
		e.order = binary.LittleEndian
	}
	if e.version == 0 {
		e.version = 3
	}
	head, err := e.header()
	if err != nil {
		return 0, err
	}
	out := countWriter{w: w}
	out.write(head)
	piece := make([]byte, 1<<20)
	for i := range s.Tensors {
		out.tensor(&s.Tensors[i], e.sizes[i], e.align, piece)
	}
	return out.n, out.err
}

// encoder builds the header of a Spec.
type encoder struct {
	spec    *Spec
	version uint32
	order   binary.AppendByteOrder
	align   int64
	sizes   []int64 // stored bytes of each tensor
	b       []byte
}

func (e *encoder) header() ([]byte, error) {
	e.b = append(e.b, "GGUF"...)
	e.u32(e.version)
	e.u64(uint64(len(e.spec.Tensors)))
	e.u64(uint64(len(e.spec.KV)))
	for _, kv := range e.spec.KV {
		if a, ok := kv.Value.(uint32); ok && kv.Key == "general.alignment" {
			e.align = int64(max(a, 1))
		}
		e.text(kv.Key)
		if err := e.value(kv.Value); err != nil {
			return nil, fmt.Errorf("key %q: %w", kv.Key, err)
		}
	}
	off := int64(0)
	for _, t := range e.spec.Tensors {
		size, err := e.tensor(t, off)
		if err != nil {
			return nil, fmt.Errorf("tensor %q: %w", t.Name, err)
		}
		e.sizes = append(e.sizes, size)
		off += size + padding(size, e.align)
	}
	if len(e.spec.Tensors) > 0 {
		e.b = append(e.b, make([]byte, padding(int64(len(e.b)), e.align))...)
	}
	return e.b, nil
}

func padding(n, align int64) int64 { return (align - n%align) % align }

func (e *encoder) u32(v uint32) { e.b = e.order.AppendUint32(e.b, v) }
func (e *encoder) u64(v uint64) { e.b = e.order.AppendUint64(e.b, v) }

func (e *encoder) text(s string) {
	e.u64(uint64(len(s)))
	e.b = append(e.b, s...)
}

// tensor writes a row of the tensor table and returns the stored size.
func (e *encoder) tensor(t SpecTensor, off int64) (int64, error) {
	ne := [4]int64{1, 1, 1, 1}
	if copy(ne[:], t.NE) < len(t.NE) || !t.Type.Known() {
		return 0, fmt.Errorf("%d dimensions of %v", len(t.NE), t.Type)
	}
	_, size, why := storedSize(t.Type, &ne)
	if why != "" {
		return 0, fmt.Errorf("shape %v of %v: %s", t.NE, t.Type, why)
	}
	if t.Data != nil && int64(len(t.Data)) != size {
		return 0, fmt.Errorf("%d bytes of data instead of %d", len(t.Data), size)
	}
	e.text(t.Name)
	e.u32(uint32(len(t.NE)))
	for _, n := range t.NE {
		e.u64(uint64(n))
	}
	e.u32(uint32(t.Type))
	e.u64(uint64(off))
	return size, nil
}

// kinds maps Go's kinds of values to GGUF's types.
var kinds = map[reflect.Kind]ValueType{
	reflect.Uint8: ValueUint8, reflect.Int8: ValueInt8, reflect.Uint16: ValueUint16, reflect.Int16: ValueInt16,
	reflect.Uint32: ValueUint32, reflect.Int32: ValueInt32, reflect.Uint64: ValueUint64, reflect.Int64: ValueInt64,
	reflect.Float32: ValueFloat32, reflect.Float64: ValueFloat64, reflect.Bool: ValueBool,
	reflect.String: ValueString, reflect.Slice: ValueArray,
}

// value writes the type and the value.
func (e *encoder) value(v any) error {
	t, ok := kinds[reflect.ValueOf(v).Kind()]
	if !ok {
		return fmt.Errorf("GGUF has no type for a %T", v)
	}
	e.u32(uint32(t))
	return e.payload(v)
}

// payload writes a value without its type.
func (e *encoder) payload(v any) (err error) {
	switch v := v.(type) {
	case string:
		e.text(v)
		return nil
	case []string:
		e.u32(uint32(ValueString))
		e.u64(uint64(len(v)))
		for _, s := range v {
			e.text(s)
		}
		return nil
	case []any:
		return e.anys(v)
	}
	if r := reflect.ValueOf(v); r.Kind() == reflect.Slice {
		elem, ok := kinds[r.Type().Elem().Kind()]
		if !ok || elem.Bytes() == 0 {
			return fmt.Errorf("GGUF has no type for a %T", v)
		}
		e.u32(uint32(elem))
		e.u64(uint64(r.Len()))
	}
	e.b, err = binary.Append(e.b, e.order.(binary.ByteOrder), v)
	return err
}

func (e *encoder) anys(vs []any) error {
	if len(vs) == 0 {
		return fmt.Errorf("an empty []any has no element type")
	}
	e.u32(uint32(kinds[reflect.ValueOf(vs[0]).Kind()]))
	e.u64(uint64(len(vs)))
	for _, v := range vs {
		if err := e.payload(v); err != nil {
			return err
		}
	}
	return nil
}

// countWriter counts what it has written; the first error stays.
type countWriter struct {
	w   io.Writer
	n   int64
	err error
}

func (c *countWriter) write(p []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(p)
	c.n, c.err = c.n+int64(n), err
}

// tensor writes the data of t and the padding after it.
func (c *countWriter) tensor(t *SpecTensor, size, align int64, piece []byte) {
	piece = piece[:len(piece)/t.Type.BlockBytes()*t.Type.BlockBytes()]
	for off := int64(0); off < size && c.err == nil; off += int64(len(piece)) {
		p := piece[:min(int64(len(piece)), size-off)]
		switch {
		case t.Data != nil:
			p = t.Data[off : off+int64(len(p))]
		case t.Fill != nil:
			t.Fill(p, off)
		default:
			clear(p)
		}
		c.write(p)
	}
	c.write(make([]byte, padding(size, align)))
}
