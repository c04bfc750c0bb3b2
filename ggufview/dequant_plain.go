package ggufview

import "math"

// Plain types hold one value after another; only their width and kind differ.

// halves[h] is the float32 of the half h; NaNs come out quiet, as from the hardware.
var halves = func() (t [1 << 16]float32) {
	for i := range t {
		t[i] = halfToFloat(uint16(i))
	}
	return t
}()

// halfToFloat widens an IEEE half exactly.
func halfToFloat(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	magnitude := uint32(h&0x7fff) << 13
	switch {
	case magnitude > 0x0f800000:
		magnitude |= 0x7fc00000
	case magnitude == 0x0f800000:
		magnitude = 0x7f800000
	default: // both exponent biases differ by 112; subnormal halves become normal on the way
		magnitude = math.Float32bits(math.Float32frombits(magnitude) * 0x1p112)
	}
	return math.Float32frombits(sign | magnitude)
}

func dequantF32(dst []float32, src []byte) {
	if littleHost {
		copy(floatBytes(dst), src)
		return
	}
	for i := range dst {
		dst[i] = math.Float32frombits(le.Uint32(src[4*i:]))
	}
}

func dequantF16(dst []float32, src []byte) {
	for len(dst) >= 4 && len(src) >= 8 {
		v := le.Uint64(src)
		dst[0] = halves[uint16(v)]
		dst[1] = halves[uint16(v>>16)]
		dst[2] = halves[uint16(v>>32)]
		dst[3] = halves[uint16(v>>48)]
		dst, src = dst[4:], src[8:]
	}
	for i := range dst {
		dst[i] = half(src[2*i:])
	}
}

func dequantBF16(dst []float32, src []byte) {
	for len(dst) >= 4 && len(src) >= 8 {
		v := le.Uint64(src)
		dst[0] = math.Float32frombits(uint32(v) << 16)
		dst[1] = math.Float32frombits(uint32(v) & 0xffff0000)
		dst[2] = math.Float32frombits(uint32(v>>32) << 16)
		dst[3] = math.Float32frombits(uint32(v>>32) & 0xffff0000)
		dst, src = dst[4:], src[8:]
	}
	for i := range dst {
		dst[i] = math.Float32frombits(uint32(le.Uint16(src[2*i:])) << 16)
	}
}

func dequantF64(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = float32(math.Float64frombits(le.Uint64(src[8*i:])))
	}
}

func dequantI8(dst []float32, src []byte) {
	for i, b := range src {
		dst[i] = int8s[b]
	}
}

func dequantI16(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = float32(int16(le.Uint16(src[2*i:])))
	}
}

func dequantI32(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = float32(int32(le.Uint32(src[4*i:])))
	}
}

func dequantI64(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = float32(int64(le.Uint64(src[8*i:])))
	}
}
