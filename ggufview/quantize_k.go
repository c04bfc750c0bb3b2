package ggufview

import "math"

// Quantisers of the K-quants: the searches of quantize_row_q*_K_ref in
// ggml-quants.c, operation for operation in float32, because the last bit of a
// sum decides between two codes. Every product that is added to something is
// wrapped in float32(), so that it is rounded on its own.

// tinyGroup is the magnitude below which a group is all zero (GROUP_MAX_EPS).
const tinyGroup = 1e-15

// nearest rounds half to even; |v| must stay below 2^22 (nearest_int).
func nearest(v float32) int {
	return int(math.Float32bits(float32(v)+12582912)&0x007fffff) - 0x00400000
}

// clamp limits v to low..high.
func clamp(v, low, high int) int { return max(low, min(high, v)) }

// rangeFit is a search for scale and minimum of one group, x = scale*q - minus
// with q of 0..most and minus >= 0, least weighted error (make_qkx2_quants).
type rangeFit struct {
	most        int
	first, step float32 // the inverse scales tried: most + first + step*i over the range
	steps       int
	absolute    bool // sum of absolute errors instead of squares
}

// fit sets the codes q of x and returns the scale and the minimum's negative.
func (f *rangeFit) fit(x, weights []float32, q []byte) (scale, minus float32) {
	low, high := x[0], x[0]
	sumW := weights[0]
	sumX := float32(sumW * x[0])
	for i := 1; i < len(x); i++ {
		low, high = min(low, x[i]), max(high, x[i])
		sumW += weights[i]
		sumX += float32(weights[i] * x[i])
	}
	low = min(low, 0)
	if high == low {
		clear(q)
		return 0, -low
	}
	var buffer [32]byte
	trial := buffer[:len(x)]
	inverse := float32(f.most) / (high - low)
	scale = 1 / inverse
	f.codes(q, x, inverse, low)
	best := f.error(q, x, weights, scale, low)
	for i := range f.steps + 1 {
		inverse = (f.first + float32(f.step*float32(i)) + float32(f.most)) / (high - low)
		f.codes(trial, x, inverse, low)
		s, l, ok := solve(trial, x, weights, sumW, sumX)
		if !ok {
			continue
		}
		if e := f.error(trial, x, weights, s, l); e < best {
			copy(q, trial)
			best, scale, low = e, s, l
		}
	}
	return scale, -low
}

// codes quantises x for a given inverse scale and minimum.
func (f *rangeFit) codes(q []byte, x []float32, inverse, low float32) {
	for i, v := range x {
		q[i] = byte(clamp(nearest(inverse*(v-low)), 0, f.most))
	}
}

// error is the weighted error of codes with a scale and minimum.
func (f *rangeFit) error(q []byte, x, weights []float32, scale, low float32) (sum float32) {
	for i, v := range x {
		diff := float32(scale*float32(q[i])) + low - v
		if f.absolute {
			diff = abs32(diff)
		} else {
			diff = float32(diff * diff)
		}
		sum += float32(weights[i] * diff)
	}
	return sum
}

// solve finds the scale and minimum (not above 0) that suit codes best, by weighted least squares.
func solve(q []byte, x, weights []float32, sumW, sumX float32) (scale, low float32, ok bool) {
	var sumQ, sumQ2, sumXQ float32
	for i, v := range x {
		wq := float32(weights[i] * float32(q[i]))
		sumQ += wq
		sumQ2 += float32(wq * float32(q[i]))
		sumXQ += float32(wq * v)
	}
	det := float32(sumW*sumQ2) - float32(sumQ*sumQ)
	if !(det > 0) {
		return 0, 0, false
	}
	scale = (float32(sumW*sumXQ) - float32(sumX*sumQ)) / det
	low = (float32(sumQ2*sumX) - float32(sumQ*sumXQ)) / det
	if low > 0 {
		return sumXQ / sumQ2, 0, true
	}
	return scale, low, true
}

func quantQ2_K(dst []byte, src []float32) {
	fit := rangeFit{most: 3, first: -0.5, step: 0.1, steps: 15, absolute: true}
	var q [256]byte
	var weights [16]float32
	var scales, mins [16]float32
	for ; len(src) >= 256; dst, src = dst[84:], src[256:] {
		var maxScale, maxMin float32
		for j := range 16 {
			x := src[16*j : 16*j+16]
			for i, v := range x {
				weights[i] = abs32(v)
			}
			scales[j], mins[j] = fit.fit(x, weights[:], q[16*j:16*j+16])
			maxScale, maxMin = max(maxScale, scales[j]), max(maxMin, mins[j])
		}
		toScale, toMin := ratio(15, maxScale), ratio(15, maxMin)
		for j := range 16 {
			dst[j] = byte(nearest(toScale*scales[j])) | byte(nearest(toMin*mins[j])<<4)
		}
		putHalf(dst[80:], maxScale/15)
		putHalf(dst[82:], maxMin/15)
		d, dmin := half(dst[80:]), half(dst[82:])
		for j, s := range dst[:16] {
			recode(q[16*j:16*j+16], src[16*j:], d*float32(s&15), float32(dmin*float32(s>>4)), 3)
		}
		packPairs(dst[16:80], &q)
	}
}

// ratio is a/b, or 0 unless b is positive.
func ratio(a, b float32) float32 {
	if b > 0 {
		return a / b
	}
	return 0
}

// recode codes x again with the stored scale and minimum; a scale of 0 keeps the codes.
func recode(q []byte, x []float32, d, minus float32, most int) {
	if d == 0 {
		return
	}
	for i := range q {
		q[i] = byte(clamp(nearest((x[i]+minus)/d), 0, most))
	}
}

// packPairs stores 256 codes of two bits as unpackPairs reads them.
func packPairs(dst []byte, q *[256]byte) {
	for i := range 64 {
		c := q[i/32*128+i%32:]
		dst[i] = c[0] | c[32]<<2 | c[64]<<4 | c[96]<<6
	}
}

// quantScaleMin codes a block of Q4_K or Q5_K: fills q and writes d, dmin and the twelve packed bytes of scales.
func quantScaleMin(fit *rangeFit, dst []byte, src []float32, q *[256]byte) {
	var weights [32]float32
	var scales, mins [8]float32
	var maxScale, maxMin float32
	for j := range 8 {
		x := src[32*j : 32*j+32]
		var sum float32
		for _, v := range x {
			sum += float32(v * v)
		}
		average := float32(math.Sqrt(float64(sum / 32)))
		for i, v := range x {
			weights[i] = average + abs32(v)
		}
		scales[j], mins[j] = fit.fit(x, weights[:], q[32*j:32*j+32])
		maxScale, maxMin = max(maxScale, scales[j]), max(maxMin, mins[j])
	}
	toScale, toMin := ratio(63, maxScale), ratio(63, maxMin)
	packed := (*[12]byte)(dst[4:])
	for j := range 8 {
		s, m := min(63, byte(nearest(toScale*scales[j]))), min(63, byte(nearest(toMin*mins[j])))
		if j < 4 {
			packed[j], packed[j+4] = s, m
		} else {
			packed[j+4] = s&15 | m<<4
			packed[j-4] |= s >> 4 << 6
			packed[j] |= m >> 4 << 6
		}
	}
	putHalf(dst, maxScale/63)
	putHalf(dst[2:], maxMin/63)
	d, dmin := half(dst), half(dst[2:])
	for j := range 8 {
		s, m := scaleMinK(j, packed)
		recode(q[32*j:32*j+32], src[32*j:], d*float32(s), float32(dmin*float32(m)), fit.most)
	}
}

func quantQ4_K(dst []byte, src []float32) {
	fit := rangeFit{most: 15, first: -1, step: 0.1, steps: 20}
	var q [256]byte
	for ; len(src) >= 256; dst, src = dst[144:], src[256:] {
		quantScaleMin(&fit, dst, src, &q)
		for i := range 128 {
			c := q[i/32*64+i%32:]
			dst[16+i] = c[0] | c[32]<<4
		}
	}
}

func quantQ5_K(dst []byte, src []float32) {
	fit := rangeFit{most: 31, first: -0.5, step: 0.1, steps: 15}
	var q [256]byte
	for ; len(src) >= 256; dst, src = dst[176:], src[256:] {
		quantScaleMin(&fit, dst, src, &q)
		for i := range 128 {
			c := q[i/32*64+i%32:]
			dst[48+i] = c[0]&15 | c[32]<<4
		}
		for i := range 32 {
			var fifth byte
			for j := range 8 {
				fifth |= q[32*j+i] >> 4 << j
			}
			dst[16+i] = fifth
		}
	}
}
