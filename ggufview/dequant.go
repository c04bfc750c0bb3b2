package ggufview

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync"
	"unsafe"
)

// chunkBytes bounds every scratch buffer of the converters and views, so that
// a window of any size costs the same memory and stays in the second-level cache.
const chunkBytes = 32 << 10

var le = binary.LittleEndian

var bytesPool = sync.Pool{New: func() any { return new([chunkBytes]byte) }}

// fast is what replaces the plain dequantisers on this CPU, bit for bit the same.
var fast [len(types)]func(dst []float32, src []byte)

// Dequantize converts whole blocks of src to float32. len(src) must be a
// multiple of the block's bytes and len(dst) exactly the number of values in
// it; anything else, and a type without a dequantiser, is an error. The result
// is bit for bit that of ggml's dequantize_row functions (ggml-quants.c); I64,
// I32 and F64 are rounded to nearest even.
func Dequantize(t Type, bigEndian bool, dst []float32, src []byte) error {
	if !t.CanDequantize() {
		return fmt.Errorf("%v has no dequantiser", t)
	}
	if err := checkBlocks(t, len(dst), len(src)); err != nil {
		return fmt.Errorf("dequantise: %w", err)
	}
	info, dequant := &types[t], types[t].dequant
	if fast[t] != nil {
		dequant = fast[t]
	}
	if !bigEndian || info.wide == nil {
		dequant(dst, src)
		return nil
	}
	scratch := bytesPool.Get().(*[chunkBytes]byte)
	defer bytesPool.Put(scratch)
	for len(src) > 0 {
		n := min(len(src), chunkBytes/info.bytes*info.bytes)
		values := n / info.bytes * info.block
		copy(scratch[:n], src)
		info.wide.swap(scratch[:n], info.bytes)
		dequant(dst[:values], scratch[:n])
		dst, src = dst[values:], src[n:]
	}
	return nil
}

// checkBlocks verifies that so many values and so many bytes are the same number of whole blocks.
func checkBlocks(t Type, values, size int) error {
	info := &types[t]
	if size%info.bytes != 0 || values%info.block != 0 || size/info.bytes != values/info.block {
		return fmt.Errorf("%v: %d bytes for %d values, a block has %d bytes for %d values",
			t, size, values, info.bytes, info.block)
	}
	return nil
}

// swap reverses the multi-byte fields of each block of b in place.
func (w wide) swap(b []byte, block int) {
	for ; len(b) >= block; b = b[block:] {
		for _, f := range w {
			for i := range f.n {
				reverse(b[f.off+i*f.width:], f.width)
			}
		}
	}
}

// reverse turns the first width (2, 4 or 8) bytes of b round.
func reverse(b []byte, width int) {
	switch width {
	case 2:
		le.PutUint16(b, bits.ReverseBytes16(le.Uint16(b)))
	case 4:
		le.PutUint32(b, bits.ReverseBytes32(le.Uint32(b)))
	default:
		le.PutUint64(b, bits.ReverseBytes64(le.Uint64(b)))
	}
}

// The kernels work in two steps: a block's small integers are unpacked to one
// byte each, eight at a time inside a uint64, and then a common loop turns a
// run of them into floats. Every product is wrapped in float32(), so that no
// compiler fuses it with the following addition: ggml rounds twice.

// int8s[b] is the float of the signed byte b; a table is faster than a conversion.
var int8s = func() (t [256]float32) {
	for i := range t {
		t[i] = float32(int8(i))
	}
	return t
}()

// scale16 sets y[i] = d*q[i], q signed.
func scale16(y *[16]float32, q *[16]byte, d float32) {
	for i := 0; i < 16; i += 4 {
		y[i] = d * int8s[q[i]]
		y[i+1] = d * int8s[q[i+1]]
		y[i+2] = d * int8s[q[i+2]]
		y[i+3] = d * int8s[q[i+3]]
	}
}

// scale32 is scale16 for 32 values.
func scale32(y *[32]float32, q *[32]byte, d float32) {
	for i := 0; i < 32; i += 4 {
		y[i] = d * int8s[q[i]]
		y[i+1] = d * int8s[q[i+1]]
		y[i+2] = d * int8s[q[i+2]]
		y[i+3] = d * int8s[q[i+3]]
	}
}

// affine16 sets y[i] = d*q[i] - m.
func affine16(y *[16]float32, q *[16]byte, d, m float32) {
	for i := 0; i < 16; i += 4 {
		y[i] = float32(d*int8s[q[i]]) - m
		y[i+1] = float32(d*int8s[q[i+1]]) - m
		y[i+2] = float32(d*int8s[q[i+2]]) - m
		y[i+3] = float32(d*int8s[q[i+3]]) - m
	}
}

// affine32 is affine16 for 32 values.
func affine32(y *[32]float32, q *[32]byte, d, m float32) {
	for i := 0; i < 32; i += 4 {
		y[i] = float32(d*int8s[q[i]]) - m
		y[i+1] = float32(d*int8s[q[i+1]]) - m
		y[i+2] = float32(d*int8s[q[i+2]]) - m
		y[i+3] = float32(d*int8s[q[i+3]]) - m
	}
}

const (
	ones     = 0x0101010101010101 // the same byte in all eight lanes: ones * byte
	nibbles8 = 0x0f * ones
	pairs8   = 0x03 * ones
)

// littleHost says whether this machine stores the low byte first, as GGUF does.
var littleHost = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// floatBytes is the memory of f.
func floatBytes(f []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(f))), 4*len(f))
}

// half is the float32 of the f16 that starts b.
func half(b []byte) float32 { return halves[le.Uint16(b)] }
