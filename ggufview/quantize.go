package ggufview

import (
	"fmt"
	"math"
)

// Quantize converts whole blocks of float32 values to a stored type. len(src)
// must be a multiple of the block's values and len(dst) exactly the bytes they
// take; anything else, and a type without a quantiser, is an error. The result
// is bit for bit that of gguf-py's quantize where it has the type, and of ggml's
// quantize_row_*_ref for the K-quants. Values that are not finite give valid but
// otherwise unspecified blocks in the quantised types.
func Quantize(t Type, bigEndian bool, dst []byte, src []float32) error {
	if !t.CanQuantize() {
		return fmt.Errorf("%v has no quantiser", t)
	}
	if err := checkBlocks(t, len(src), len(dst)); err != nil {
		return fmt.Errorf("quantise: %w", err)
	}
	info := &types[t]
	info.quant(dst, src)
	if bigEndian {
		info.wide.swap(dst, info.bytes)
	}
	return nil
}

func quantF32(dst []byte, src []float32) {
	for i, v := range src {
		le.PutUint32(dst[4*i:], math.Float32bits(v))
	}
}

func quantF64(dst []byte, src []float32) {
	for i, v := range src {
		le.PutUint64(dst[8*i:], math.Float64bits(float64(v)))
	}
}

func quantF16(dst []byte, src []float32) {
	for i, v := range src {
		putHalf(dst[2*i:], v)
	}
}

func quantBF16(dst []byte, src []float32) {
	for i, v := range src {
		le.PutUint16(dst[2*i:], bfloat16(v))
	}
}

// bfloat16 rounds to nearest even; NaNs become quiet (ggml_compute_fp32_to_bf16).
func bfloat16(v float32) uint16 {
	b := math.Float32bits(v)
	if b&0x7fffffff > 0x7f800000 {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

func putHalf(b []byte, v float32) { le.PutUint16(b, floatToHalf(v)) }

// floatToHalf rounds to nearest even, to infinity from 65520 on; NaNs keep the
// upper bits of their payload, as in NumPy.
func floatToHalf(v float32) uint16 {
	b := math.Float32bits(v)
	sign, b := uint16(b>>16&0x8000), b&0x7fffffff
	switch {
	case b > 0x7f800000:
		return sign | 0x7c00 | max(1, uint16(b>>13&0x3ff))
	case b >= 0x47800000: // 65536
		return sign | 0x7c00
	case b < 0x38800000: // 2^-14, below it halves are spaced 2^-24 apart: let the addition round
		return sign | uint16(math.Float32bits(math.Float32frombits(b)+0.5)-0x3f000000)
	}
	return sign | uint16((b-0x38000000+0xfff+b>>13&1)>>13)
}

// code rounds v down to a code of 0 to most. NaN gives 0.
func code(v float32, most byte) byte {
	switch {
	case v >= float32(most):
		return most
	case v > 0:
		return byte(v)
	}
	return 0
}

// inverse is 1/d, or 0 for 0.
func inverse(d float32) float32 {
	if d == 0 {
		return 0
	}
	return 1 / d
}

// largest is the value with the largest magnitude, the first of equals.
func largest(x []float32) float32 {
	most := x[0]
	for _, v := range x {
		if abs32(v) > abs32(most) {
			most = v
		}
	}
	return most
}

func abs32(v float32) float32 { return math.Float32frombits(math.Float32bits(v) &^ (1 << 31)) }

// pack4 stores the low nibbles of 32 codes, the second half in the high nibbles.
func pack4(dst []byte, q *[32]byte) {
	for i := range 16 {
		dst[i] = q[i]&15 | q[i+16]<<4
	}
}

// pack5 stores 32 codes of five bits: the fifth bits as a word, then the nibbles.
func pack5(dst []byte, q *[32]byte) {
	var fifth uint32
	for i, v := range q {
		fifth |= uint32(v>>4) << i
	}
	le.PutUint32(dst, fifth)
	pack4(dst[4:], q)
}

// symmetric codes 32 values around the middle of 0 to 2*middle-1 and returns the step.
func symmetric(q *[32]byte, x []float32, middle float32) (d float32) {
	d = largest(x) / -middle
	id := inverse(d)
	for i := range q {
		q[i] = code(float32(x[i]*id)+(middle+0.5), byte(2*middle-1))
	}
	return d
}

// ranged codes 32 values from their minimum up to most and returns step and minimum.
func ranged(q *[32]byte, x []float32, most byte) (d, low float32) {
	low, high := x[0], x[0]
	for _, v := range x[:32] {
		low, high = min(low, v), max(high, v)
	}
	d = (high - low) / float32(most)
	id := inverse(d)
	for i := range q {
		q[i] = code(float32((x[i]-low)*id)+0.5, most)
	}
	return d, low
}

func quantQ4_0(dst []byte, src []float32) {
	var q [32]byte
	for ; len(src) >= 32; dst, src = dst[18:], src[32:] {
		putHalf(dst, symmetric(&q, src[:32], 8))
		pack4(dst[2:], &q)
	}
}

func quantQ5_0(dst []byte, src []float32) {
	var q [32]byte
	for ; len(src) >= 32; dst, src = dst[22:], src[32:] {
		putHalf(dst, symmetric(&q, src[:32], 16))
		pack5(dst[2:], &q)
	}
}

func quantQ4_1(dst []byte, src []float32) {
	var q [32]byte
	for ; len(src) >= 32; dst, src = dst[20:], src[32:] {
		d, low := ranged(&q, src[:32], 15)
		putHalf(dst, d)
		putHalf(dst[2:], low)
		pack4(dst[4:], &q)
	}
}

func quantQ5_1(dst []byte, src []float32) {
	var q [32]byte
	for ; len(src) >= 32; dst, src = dst[24:], src[32:] {
		d, low := ranged(&q, src[:32], 31)
		putHalf(dst, d)
		putHalf(dst[2:], low)
		pack5(dst[4:], &q)
	}
}

func quantQ8_0(dst []byte, src []float32) {
	for ; len(src) >= 32; dst, src = dst[34:], src[32:] {
		d := abs32(largest(src[:32])) / 127
		id := inverse(d)
		putHalf(dst, d)
		for i, v := range src[:32] {
			r := math.Round(float64(v * id)) // half away from zero, like roundf
			dst[2+i] = byte(int8(max(-128, min(127, r))))
		}
	}
}
