package ggufview

// Q3_K and Q6_K: symmetric groups of 16 values, x = scale*(q - bias).

// fitQ6 finds a scale for codes -32..31 with weights x*x, trying eighteen other
// scales near the first one (make_qx_quants, rmse_type 1). Codes are biased by 32.
func fitQ6(x []float32, q []byte) (scale float32) {
	top := largest(x)
	if abs32(top) < tinyGroup {
		clear(q)
		return 0
	}
	sumXQ, sumQ2 := codesQ6(q, x, -32/top)
	scale = ratio(sumXQ, sumQ2)
	best := float32(scale * sumXQ)
	var trial [16]byte
	for i := -9; i <= 9; i++ {
		if i == 0 {
			continue
		}
		sumXQ, sumQ2 = codesQ6(trial[:], x, -(32+float32(0.1*float32(i)))/top)
		if sumQ2 > 0 && float32(sumXQ*sumXQ) > float32(best*sumQ2) {
			copy(q, trial[:])
			scale = sumXQ / sumQ2
			best = float32(scale * sumXQ)
		}
	}
	return scale
}

// codesQ6 codes x with an inverse scale and sums what least squares needs.
func codesQ6(q []byte, x []float32, inverse float32) (sumXQ, sumQ2 float32) {
	for i, v := range x {
		c := clamp(nearest(inverse*v), -32, 31)
		q[i] = byte(c + 32)
		w := float32(v * v)
		sumXQ += float32(float32(w*v) * float32(c))
		sumQ2 += float32(float32(w*float32(c)) * float32(c))
	}
	return sumXQ, sumQ2
}

// fitQ3 finds a scale for codes -4..3 with weights x*x by moving single codes
// while that helps, five rounds at most (make_q3_quants). Codes are biased by 4.
func fitQ3(x []float32, q []byte) (scale float32) {
	top := largest(x)
	if abs32(top) < tinyGroup {
		clear(q)
		return 0
	}
	var codes [16]int
	var sumXQ, sumQ2 float32
	for i, v := range x {
		c := clamp(nearest(-4/top*v), -4, 3)
		codes[i] = c
		w := float32(v * v)
		sumXQ += float32(float32(w*v) * float32(c))
		sumQ2 += float32(float32(w*float32(c)) * float32(c))
	}
	for changed, round := true, 0; changed && round < 5; round++ {
		changed = false
		for i, v := range x {
			if c, xq, q2, better := moveQ3(v, codes[i], sumXQ, sumQ2); better {
				codes[i], sumXQ, sumQ2, changed = c, xq, q2, true
			}
		}
	}
	for i, c := range codes {
		q[i] = byte(c + 4)
	}
	return ratio(sumXQ, sumQ2)
}

// moveQ3 tries the best code for one value while the others stay.
func moveQ3(v float32, old int, sumXQ, sumQ2 float32) (c int, xq, q2 float32, better bool) {
	w := float32(v * v)
	wx := float32(w * v)
	xq = sumXQ - float32(wx*float32(old))
	if !(xq > 0) {
		return
	}
	q2 = sumQ2 - float32(float32(w*float32(old))*float32(old))
	c = clamp(nearest(float32(v*q2)/xq), -4, 3)
	if c == old {
		return
	}
	xq += float32(wx * float32(c))
	q2 += float32(float32(w*float32(c)) * float32(c))
	better = q2 > 0 && float32(float32(xq*xq)*sumQ2) > float32(float32(sumXQ*sumXQ)*q2)
	return
}

// recodeSigned codes x again with the stored scale; a scale of 0 keeps the codes.
func recodeSigned(q []byte, x []float32, d float32, bias int) {
	if d == 0 {
		return
	}
	for i := range q {
		q[i] = byte(clamp(nearest(x[i]/d), -bias, bias-1) + bias)
	}
}

// fitGroups runs a fit over the sixteen groups of a block and returns their
// scales and the one with the largest magnitude.
func fitGroups(fit func([]float32, []byte) float32, src []float32, q *[256]byte) (scales [16]float32, top float32) {
	for j := range scales {
		scales[j] = fit(src[16*j:16*j+16], q[16*j:16*j+16])
		if abs32(scales[j]) > abs32(top) {
			top = scales[j]
		}
	}
	return scales, top
}

func quantQ3_K(dst []byte, src []float32) {
	var q [256]byte
	for ; len(src) >= 256; dst, src = dst[110:], src[256:] {
		scales, top := fitGroups(fitQ3, src, &q)
		clear(dst[:110])
		if top != 0 {
			inverse := -32 / top
			for j, s := range scales {
				c := byte(clamp(int(int8(nearest(inverse*s))), -32, 31) + 32)
				dst[96+j&7] |= c & 15 << (j >> 3 * 4)
				dst[104+j&3] |= c >> 4 << (j >> 2 * 2)
			}
			putHalf(dst[108:], 1/inverse)
		}
		d := half(dst[108:])
		for j, s := range scalesQ3_K((*[12]byte)(dst[96:])) {
			recodeSigned(q[16*j:16*j+16], src[16*j:], d*int8s[s], 4)
		}
		for i := range q { // the third bit apart, bit i/32 of byte i%32
			dst[i&31] |= q[i] >> 2 << (i >> 5)
			q[i] &= 3
		}
		packPairs(dst[32:96], &q)
	}
}

func quantQ6_K(dst []byte, src []float32) {
	var q [256]byte
	for ; len(src) >= 256; dst, src = dst[210:], src[256:] {
		scales, top := fitGroups(fitQ6, src, &q)
		if abs32(top) < tinyGroup {
			clear(dst[:210])
			continue
		}
		inverse := -128 / top
		putHalf(dst[208:], 1/inverse)
		d := half(dst[208:])
		for j, s := range scales {
			c := byte(min(127, nearest(inverse*s)))
			dst[192+j] = c
			recodeSigned(q[16*j:16*j+16], src[16*j:], d*int8s[c], 32)
		}
		for i := range 64 {
			c := q[i/32*128+i%32:]
			low := dst[i/32*64+i%32:]
			low[0], low[32] = c[0]&15|c[64]<<4, c[32]&15|c[96]<<4
			dst[128+i] = c[0]>>4 | c[32]>>4<<2 | c[64]>>4<<4 | c[96]>>4<<6
		}
	}
}
