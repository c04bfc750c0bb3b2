package ggufview

import "math"

// Types with one scale for a short block. Layouts: block_* in ggml-common.h;
// values: dequantize_row_* in ggml-quants.c. Where a byte holds two values, the
// low halves are the first half of the block and the high halves the second.

// nibbleTable holds the two values of a byte that packs two 4-bit codes.
type nibbleTable struct{ lo, hi [256]float32 }

func newNibbleTable(value func(code int) float32) (t nibbleTable) {
	for i := range 256 {
		t.lo[i], t.hi[i] = value(i&15), value(i>>4)
	}
	return t
}

// codes4NL is kvalues_iq4nl, codesFP4 kvalues_mxfp4 (E2M1 doubled) of ggml-common.h.
var (
	codes4NL = [16]float32{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}
	codesFP4 = [16]float32{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}

	nibbles    = newNibbleTable(func(code int) float32 { return float32(code) })
	nibblesQ4  = newNibbleTable(func(code int) float32 { return float32(code - 8) })
	nibbles4NL = newNibbleTable(func(code int) float32 { return codes4NL[code] })
	nibblesFP4 = newNibbleTable(func(code int) float32 { return codesFP4[code] })
)

// scale sets 32 values of 16 bytes: y = d * code.
func (t *nibbleTable) scale(y *[32]float32, q *[16]byte, d float32) {
	for i := 0; i < 16; i += 2 {
		a, b := q[i], q[i+1]
		y[i] = d * t.lo[a]
		y[i+1] = d * t.lo[b]
		y[i+16] = d * t.hi[a]
		y[i+17] = d * t.hi[b]
	}
}

func dequantQ4_0(dst []float32, src []byte) {
	for len(src) >= 18 {
		nibblesQ4.scale((*[32]float32)(dst), (*[16]byte)(src[2:]), half(src))
		dst, src = dst[32:], src[18:]
	}
}

func dequantIQ4_NL(dst []float32, src []byte) {
	for len(src) >= 18 {
		nibbles4NL.scale((*[32]float32)(dst), (*[16]byte)(src[2:]), half(src))
		dst, src = dst[32:], src[18:]
	}
}

func dequantMXFP4(dst []float32, src []byte) {
	for len(src) >= 17 {
		nibblesFP4.scale((*[32]float32)(dst), (*[16]byte)(src[1:]), e8m0Half(src[0]))
		dst, src = dst[32:], src[17:]
	}
}

// e8m0Half is 2^(e-128), half of what the exponent byte says because codesFP4
// is doubled (ggml_e8m0_to_fp32_half).
func e8m0Half(e byte) float32 {
	if e < 2 {
		return math.Float32frombits(0x00200000 << e)
	}
	return math.Float32frombits(uint32(e-1) << 23)
}

// ue4m3Half is half the value of an unsigned E4M3 (ggml_ue4m3_to_fp32).
var ue4m3Half = func() (t [256]float32) {
	for i := range t {
		exponent, mantissa := i>>3&15, float64(i&7)
		switch {
		case i == 0 || i == 0x7f:
		case exponent == 0:
			t[i] = float32(math.Ldexp(mantissa, -10))
		default:
			t[i] = float32(math.Ldexp(8+mantissa, exponent-11))
		}
	}
	return t
}()

func dequantNVFP4(dst []float32, src []byte) {
	for len(src) >= 36 {
		for s := range 4 {
			d := ue4m3Half[src[s]]
			y, q := (*[16]float32)(dst[16*s:]), (*[8]byte)(src[4+8*s:])
			for i, b := range q {
				y[i], y[i+8] = d*nibblesFP4.lo[b], d*nibblesFP4.hi[b]
			}
		}
		dst, src = dst[64:], src[36:]
	}
}

func dequantQ4_1(dst []float32, src []byte) {
	for len(src) >= 20 {
		d, m := half(src), half(src[2:])
		y, q := (*[32]float32)(dst), (*[16]byte)(src[4:])
		for i, b := range q {
			y[i], y[i+16] = float32(d*nibbles.lo[b])+m, float32(d*nibbles.hi[b])+m
		}
		dst, src = dst[32:], src[20:]
	}
}

// unpack5 sets 32 codes of 16 bytes and a fifth bit each.
func unpack5(q *[32]byte, packed *[16]byte, fifth uint32) {
	const bit4 = 0x10 * ones
	a, b := le.Uint64(packed[0:]), le.Uint64(packed[8:])
	le.PutUint64(q[0:], a&nibbles8|signMasks[byte(fifth)]&bit4)
	le.PutUint64(q[8:], b&nibbles8|signMasks[byte(fifth>>8)]&bit4)
	le.PutUint64(q[16:], a>>4&nibbles8|signMasks[byte(fifth>>16)]&bit4)
	le.PutUint64(q[24:], b>>4&nibbles8|signMasks[byte(fifth>>24)]&bit4)
}

func dequantQ5_0(dst []float32, src []byte) {
	var q [32]byte
	for len(src) >= 22 {
		unpack5(&q, (*[16]byte)(src[6:]), le.Uint32(src[2:]))
		for i := 0; i < 32; i += 8 {
			le.PutUint64(q[i:], less(le.Uint64(q[i:]), 16))
		}
		scale32((*[32]float32)(dst), &q, half(src))
		dst, src = dst[32:], src[22:]
	}
}

func dequantQ5_1(dst []float32, src []byte) {
	var q [32]byte
	for len(src) >= 24 {
		unpack5(&q, (*[16]byte)(src[8:]), le.Uint32(src[4:]))
		d, m := half(src), half(src[2:])
		y := (*[32]float32)(dst)
		for i, code := range q { // not affine32 with -m: the minus of a NaN would show
			y[i] = float32(d*int8s[code]) + m
		}
		dst, src = dst[32:], src[24:]
	}
}

func dequantQ8_0(dst []float32, src []byte) {
	for len(src) >= 34 {
		scale32((*[32]float32)(dst), (*[32]byte)(src[2:]), half(src))
		dst, src = dst[32:], src[34:]
	}
}

func dequantQ1_0(dst []float32, src []byte) {
	for len(src) >= 18 {
		d := half(src)
		sign := [2]float32{-d, d}
		for i, b := range src[2:18] {
			y := (*[8]float32)(dst[8*i:])
			for j := range y {
				y[j] = sign[b>>j&1]
			}
		}
		dst, src = dst[128:], src[18:]
	}
}

// levels are the values of the codes 0 to 3, -1 to 2 times d.
func levels(d float32) [4]float32 { return [4]float32{-d, 0 * d, d, 2 * d} }

func dequantQ2_0(dst []float32, src []byte) {
	for len(src) >= 18 {
		d := half(src)
		level := levels(d)
		for i, b := range src[2:18] {
			y := (*[4]float32)(dst[4*i:])
			y[0], y[1], y[2], y[3] = level[b&3], level[b>>2&3], level[b>>4&3], level[b>>6]
		}
		dst, src = dst[64:], src[18:]
	}
}

// dequantTQ1_0 unpacks base-3 digits: a byte is a fraction of 256 whose first
// digit after multiplying with 3^n is the n-th value.
func dequantTQ1_0(dst []float32, src []byte) {
	for len(src) >= 54 {
		d := half(src[52:])
		level := levels(d)
		y := dst[:0:256]
		for _, run := range [...]struct{ from, to, digits int }{{0, 32, 5}, {32, 48, 5}, {48, 52, 4}} {
			power := byte(1)
			for range run.digits {
				for _, b := range src[run.from:run.to] {
					y = append(y, level[uint16(b*power)*3>>8&3])
				}
				power *= 3
			}
		}
		dst, src = dst[256:], src[54:]
	}
}

func dequantTQ2_0(dst []float32, src []byte) {
	for len(src) >= 66 {
		d := half(src[64:])
		level := levels(d)
		for i, b := range src[:64] {
			y := (*[128]float32)(dst[i/32*128:])
			j := i & 31
			y[j], y[j+32], y[j+64], y[j+96] = level[b&3], level[b>>2&3], level[b>>4&3], level[b>>6]
		}
		dst, src = dst[256:], src[66:]
	}
}
