package ggufview

import "unsafe"

// Kernels in assembly for CPUs with AVX2 and F16C, that is nearly all x86-64
// since 2013. They give every bit that the plain functions give. Assembly rather
// than simd/archsimd, because the plain build has to be the fast one, and that
// package needs GOEXPERIMENT=simd.

// kernel converts blocks, at least one, which hold as many bytes and values as
// the type table says.
type kernel = func(dst *float32, src *byte, blocks int)

//go:noescape
func f16AVX2(dst *float32, src *byte, blocks int)

//go:noescape
func bf16AVX2(dst *float32, src *byte, blocks int)

//go:noescape
func q4_0AVX2(dst *float32, src *byte, blocks int)

//go:noescape
func q4_1AVX2(dst *float32, src *byte, blocks int)

//go:noescape
func q5_0AVX2(dst *float32, src *byte, blocks int)

//go:noescape
func q5_1AVX2(dst *float32, src *byte, blocks int)

//go:noescape
func q8_0AVX2(dst *float32, src *byte, blocks int)

//go:noescape
func iq4_nlAVX2(dst *float32, src *byte, blocks int)

//go:noescape
func iq4_xsAVX2(dst *float32, src *byte, blocks int)

//go:noescape
func mxfp4AVX2(dst *float32, src *byte, blocks int)

//go:noescape
func nvfp4AVX2(dst *float32, src *byte, blocks int)

//go:noescape
func q2_KAVX2(dst *float32, src *byte, blocks int)

//go:noescape
func q3_KAVX2(dst *float32, src *byte, blocks int)

//go:noescape
func q4_KAVX2(dst *float32, src *byte, blocks int)

//go:noescape
func q5_KAVX2(dst *float32, src *byte, blocks int)

//go:noescape
func q6_KAVX2(dst *float32, src *byte, blocks int)

func cpuid(leaf uint32) (ebx, ecx uint32)
func xgetbv() uint32

// hasAVX2: the CPU has the instructions, and the system keeps the registers.
func hasAVX2() bool {
	const osxsave, avx, f16c, avx2, ymm = 1 << 27, 1 << 28, 1 << 29, 1 << 5, 6
	if _, have := cpuid(1); have&(osxsave|avx|f16c) != osxsave|avx|f16c || xgetbv()&ymm != ymm {
		return false
	}
	have, _ := cpuid(7) // CPUs with F16C have this leaf
	return have&avx2 != 0
}

// Tables for shuffles of bytes, and the scales of MXFP4.
var (
	codes4NLBytes = signedBytes(codes4NL)
	codesFP4Bytes = signedBytes(codesFP4)

	e8m0Halves = func() (t [256]float32) {
		for i := range t {
			t[i] = e8m0Half(byte(i))
		}
		return t
	}()
)

func signedBytes(codes [16]float32) (t [16]int8) {
	for i, v := range codes {
		t[i] = int8(v)
	}
	return t
}

func init() {
	if !hasAVX2() {
		return
	}
	for t, k := range map[Type]kernel{
		Q4_0: q4_0AVX2, Q4_1: q4_1AVX2, Q5_0: q5_0AVX2, Q5_1: q5_1AVX2, Q8_0: q8_0AVX2, IQ4_NL: iq4_nlAVX2,
		IQ4_XS: iq4_xsAVX2, MXFP4: mxfp4AVX2, NVFP4: nvfp4AVX2,
		Q2_K: q2_KAVX2, Q3_K: q3_KAVX2, Q4_K: q4_KAVX2, Q5_K: q5_KAVX2, Q6_K: q6_KAVX2,
	} {
		fast[t] = inBlocks(k, types[t].block, types[t].bytes)
	}
	for t, k := range map[Type]kernel{F16: f16AVX2, BF16: bf16AVX2} {
		plain, eights := types[t].dequant, inBlocks(k, 8, 16)
		fast[t] = func(dst []float32, src []byte) {
			n := len(dst) &^ 7
			eights(dst[:n], src[:2*n])
			plain(dst[n:], src[2*n:])
		}
	}
}

// inBlocks gives k at most a megabyte of values at a time: assembly can not be
// interrupted, and the garbage collector would wait for it.
func inBlocks(k kernel, values, bytes int) func([]float32, []byte) {
	const most = 1 << 20 / 4
	return func(dst []float32, src []byte) {
		for len(src) >= bytes {
			n := min(len(src)/bytes, most/values)
			in, out := src[:n*bytes], dst[:n*values]
			k(unsafe.SliceData(out), unsafe.SliceData(in), n)
			src, dst = src[len(in):], dst[len(out):]
		}
	}
}
