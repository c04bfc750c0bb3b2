package ggufview

// The K-quants: super-blocks of 256 values with small integer scales of their
// own. Layouts: block_q*_K in ggml-common.h; values: dequantize_row_q*_K in
// ggml-quants.c. Groups are in order of the values; planes of bits are stored
// 32 values apart.

// unpackPairs spreads 64 bytes of four 2-bit codes to 256 bytes: of each 32
// bytes the lowest codes come first.
func unpackPairs(q *[256]byte, packed *[64]byte) {
	for i := 0; i < 64; i += 8 {
		v := le.Uint64(packed[i:])
		out := (*[104]byte)(q[i/32*128+i%32:])
		le.PutUint64(out[0:], v&pairs8)
		le.PutUint64(out[32:], v>>2&pairs8)
		le.PutUint64(out[64:], v>>4&pairs8)
		le.PutUint64(out[96:], v>>6&pairs8)
	}
}

func dequantQ2_K(dst []float32, src []byte) {
	var q [256]byte
	for len(src) >= 84 {
		d, dmin := half(src[80:]), half(src[82:])
		unpackPairs(&q, (*[64]byte)(src[16:]))
		for i, s := range (*[16]byte)(src) {
			affine16((*[16]float32)(dst[16*i:]), (*[16]byte)(q[16*i:]), d*nibbles.lo[s], float32(dmin*nibbles.hi[s]))
		}
		dst, src = dst[256:], src[84:]
	}
}

// scalesQ3_K unpacks 16 scales of 6 bits: four low bits in bytes 0..7 (second
// half in the high nibbles), two high bits in bytes 8..11.
func scalesQ3_K(s *[12]byte) (out [16]byte) {
	for i := range out {
		low := s[i&7] >> (i >> 3 * 4) & 15
		out[i] = (low | s[8+i&3]>>(i>>2*2)&3<<4) - 32
	}
	return out
}

func dequantQ3_K(dst []float32, src []byte) {
	var q [256]byte
	for len(src) >= 110 {
		d := half(src[108:])
		unpackPairs(&q, (*[64]byte)(src[32:]))
		for i := 0; i < 32; i += 8 {
			mask := ^le.Uint64(src[i:]) // a bit that is not set subtracts 4
			for j := range 8 {
				at := q[32*j+i:]
				high := mask >> j & ones << 2
				// q is 0..3: with bit 7 set no lane borrows from the next
				le.PutUint64(at, (le.Uint64(at)|0x80*ones)-high^0x80*ones)
			}
		}
		scales := scalesQ3_K((*[12]byte)(src[96:]))
		for i, s := range scales {
			scale16((*[16]float32)(dst[16*i:]), (*[16]byte)(q[16*i:]), d*int8s[s])
		}
		dst, src = dst[256:], src[110:]
	}
}

// scaleMinK unpacks scale and minimum j of the twelve bytes that Q4_K and Q5_K
// share (get_scale_min_k4).
func scaleMinK(j int, s *[12]byte) (scale, minimum byte) {
	if j < 4 {
		return s[j] & 63, s[j+4] & 63
	}
	return s[j+4]&15 | s[j-4]>>6<<4, s[j+4]>>4 | s[j]>>6<<4
}

func dequantQ4_K(dst []float32, src []byte) {
	for len(src) >= 144 {
		d, dmin := half(src), half(src[2:])
		scales := (*[12]byte)(src[4:])
		for i := range 4 {
			s1, m1 := scaleMinK(2*i, scales)
			s2, m2 := scaleMinK(2*i+1, scales)
			y, q := (*[64]float32)(dst[64*i:]), (*[32]byte)(src[16+32*i:])
			affineNibbles(y, q, d*int8s[s1], float32(dmin*int8s[m1]), d*int8s[s2], float32(dmin*int8s[m2]))
		}
		dst, src = dst[256:], src[144:]
	}
}

// affineNibbles sets 64 values of 32 bytes: the low nibbles d1*q-m1, then the high ones d2*q-m2.
func affineNibbles(y *[64]float32, q *[32]byte, d1, m1, d2, m2 float32) {
	for i := 0; i < 32; i += 2 {
		a, b := q[i], q[i+1]
		y[i] = float32(d1*nibbles.lo[a]) - m1
		y[i+1] = float32(d1*nibbles.lo[b]) - m1
		y[i+32] = float32(d2*nibbles.hi[a]) - m2
		y[i+33] = float32(d2*nibbles.hi[b]) - m2
	}
}

func dequantQ5_K(dst []float32, src []byte) {
	var q [256]byte
	for len(src) >= 176 {
		d, dmin := half(src), half(src[2:])
		for i := 0; i < 32; i += 8 {
			fifth := le.Uint64(src[16+i:])
			for j := 0; j < 8; j += 2 {
				v := le.Uint64(src[48+16*j+i:])
				le.PutUint64(q[32*j+i:], v&nibbles8|fifth>>j&ones<<4)
				le.PutUint64(q[32*j+32+i:], v>>4&nibbles8|fifth>>(j+1)&ones<<4)
			}
		}
		for j := range 8 {
			s, m := scaleMinK(j, (*[12]byte)(src[4:]))
			affine32((*[32]float32)(dst[32*j:]), (*[32]byte)(q[32*j:]), d*int8s[s], float32(dmin*int8s[m]))
		}
		dst, src = dst[256:], src[176:]
	}
}

func dequantQ6_K(dst []float32, src []byte) {
	var q [256]byte
	for len(src) >= 210 {
		for n := range 2 { // halves of 128 values: 64 bytes of low nibbles, 32 of high pairs
			low, high := (*[64]byte)(src[64*n:]), (*[32]byte)(src[128+32*n:])
			unpack6((*[128]byte)(q[128*n:]), low, high)
		}
		d := half(src[208:])
		for i, s := range (*[16]byte)(src[192:]) {
			scale16((*[16]float32)(dst[16*i:]), (*[16]byte)(q[16*i:]), d*int8s[s])
		}
		dst, src = dst[256:], src[210:]
	}
}

// unpack6 joins nibbles and pairs to 128 codes of 6 bits, less 32.
func unpack6(q *[128]byte, low *[64]byte, high *[32]byte) {
	for i := 0; i < 32; i += 8 {
		a, b, h := le.Uint64(low[i:]), le.Uint64(low[32+i:]), le.Uint64(high[i:])
		out := (*[104]byte)(q[i:])
		le.PutUint64(out[0:], less(a&nibbles8|h&pairs8<<4, 32))
		le.PutUint64(out[32:], less(b&nibbles8|h>>2&pairs8<<4, 32))
		le.PutUint64(out[64:], less(a>>4&nibbles8|h>>4&pairs8<<4, 32))
		le.PutUint64(out[96:], less(b>>4&nibbles8|h>>6&pairs8<<4, 32))
	}
}

// less subtracts n from eight codes, each in its own byte and, like n, below 128.
func less(v, n uint64) uint64 { return (v | 0x80*ones) - n*ones ^ 0x80*ones }
