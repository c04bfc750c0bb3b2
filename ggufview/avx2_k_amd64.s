#include "textflag.h"
#include "avx2_amd64.h"

// The K-quants. The scales of a super-block become floats on the stack, and are
// taken from there one for 16 or 32 values.

// SCALEMIN unpacks the 12 bytes that Q4_K and Q5_K share (get_scale_min_k4) to
// eight scales times Y15 at 0(SP) and eight minima times Y14 at 32(SP).
#define SCALEMIN \
	MOVL      4(SI), AX        \
	MOVL      8(SI), BX        \
	MOVL      12(SI), DX       \
	MOVL      AX, R8           \
	MOVL      BX, R9           \
	MOVL      DX, R10          \
	ANDL      $0x3f3f3f3f, AX  \
	ANDL      $0x3f3f3f3f, BX  \
	ANDL      $0x0f0f0f0f, DX  \
	SHRL      $4, R10          \
	ANDL      $0x0f0f0f0f, R10 \
	SHRL      $2, R8           \
	ANDL      $0x30303030, R8  \
	SHRL      $2, R9           \
	ANDL      $0x30303030, R9  \
	ORL       R8, DX           \
	ORL       R9, R10          \
	SHLQ      $32, DX          \
	SHLQ      $32, R10         \
	ORQ       DX, AX           \
	ORQ       R10, BX          \
	VMOVQ     AX, X2           \
	VMOVQ     BX, X3           \
	VPMOVZXBD X2, Y2           \
	VPMOVZXBD X3, Y3           \
	VCVTDQ2PS Y2, Y2           \
	VCVTDQ2PS Y3, Y3           \
	VMULPS    Y2, Y15, Y2      \
	VMULPS    Y3, Y14, Y3      \
	VMOVUPS   Y2, 0(SP)        \
	VMOVUPS   Y3, 32(SP)

// SUB32 writes sub-block i of Q4_K and Q5_K from the 32 codes of Y2.
#define SUB32(i) \
	VBROADCASTSS (4*(i))(SP), Y15    \
	VBROADCASTSS (32+4*(i))(SP), Y14 \
	FLOATS                         \
	TIMES(Y15, Y15)                \
	LESS(Y14, Y14)                 \
	STORE(128*(i))

// PAIR4 writes sub-blocks i and i+1 of Q4_K from the 32 bytes at off.
#define PAIR4(i, off) \
	VMOVDQU off(SI), Y1    \
	VPAND   Y7, Y1, Y2     \
	SUB32(i)               \
	VPSRLW  $4, Y1, Y2     \
	VPAND   Y7, Y2, Y2     \
	SUB32(i+1)

// func q4_KAVX2(dst *float32, src *byte, blocks int)
TEXT ·q4_KAVX2(SB), NOSPLIT, $64-24
	ARGS
	FILL(0x0f0f0f0f, X7, Y7)
loop:
	HALF((SI), X15, Y15)
	HALF(2(SI), X14, Y14)
	SCALEMIN
	PAIR4(0, 16)
	PAIR4(2, 48)
	PAIR4(4, 80)
	PAIR4(6, 112)
	NEXT(144, 256, loop)

// PAIR5 is PAIR4 with the fifth bits, which the shifts bring to bit 4 of Y0's bytes.
#define PAIR5(i, off, shift1, n1, shift2, n2) \
	VMOVDQU off(SI), Y1  \
	VPAND   Y7, Y1, Y2   \
	shift1  n1, Y0, Y3   \
	VPAND   Y8, Y3, Y3   \
	VPOR    Y3, Y2, Y2   \
	SUB32(i)             \
	VPSRLW  $4, Y1, Y2   \
	VPAND   Y7, Y2, Y2   \
	shift2  n2, Y0, Y3   \
	VPAND   Y8, Y3, Y3   \
	VPOR    Y3, Y2, Y2   \
	SUB32(i+1)

// func q5_KAVX2(dst *float32, src *byte, blocks int)
TEXT ·q5_KAVX2(SB), NOSPLIT, $64-24
	ARGS
	FILL(0x0f0f0f0f, X7, Y7)
	FILL(0x10101010, X8, Y8)
loop:
	HALF((SI), X15, Y15)
	HALF(2(SI), X14, Y14)
	SCALEMIN
	VMOVDQU 16(SI), Y0
	PAIR5(0, 48, VPSLLW, $4, VPSLLW, $3)
	PAIR5(2, 80, VPSLLW, $2, VPSLLW, $1)
	PAIR5(4, 112, VPSRLW, $0, VPSRLW, $1)
	PAIR5(6, 144, VPSRLW, $2, VPSRLW, $3)
	NEXT(176, 256, loop)

// SUB16 writes the two sub-blocks of 16 values from i on from the 32 codes of Y2.
#define SUB16(i) \
	VBROADCASTSS (4*(i))(SP), Y15   \
	VBROADCASTSS (4*(i)+4)(SP), Y14 \
	FLOATS                        \
	TIMES(Y15, Y14)               \
	STORE(64*(i))

// SCALES16 puts the 16 signed bytes of X2 times Y15 on the stack.
#define SCALES16 \
	VPMOVSXBD X2, Y3      \
	VPSRLDQ   $8, X2, X2  \
	VPMOVSXBD X2, Y4      \
	VCVTDQ2PS Y3, Y3      \
	VCVTDQ2PS Y4, Y4      \
	VMULPS    Y3, Y15, Y3 \
	VMULPS    Y4, Y15, Y4 \
	VMOVUPS   Y3, 0(SP)   \
	VMOVUPS   Y4, 32(SP)

// SIX writes 32 values from the nibbles of Y2 and two bits more of Y1, which the
// shift brings to bit 4 of its bytes.
#define SIX(i, shift, n) \
	VPAND  Y7, Y2, Y2 \
	shift  n, Y1, Y3  \
	VPAND  Y8, Y3, Y3 \
	VPOR   Y3, Y2, Y2 \
	VPSUBB Y9, Y2, Y2 \
	SUB16(i)

// HALF6 writes 128 values of Q6_K.
#define HALF6(i, low, high) \
	VMOVDQU high(SI), Y1     \
	VMOVDQU low(SI), Y2      \
	SIX(i, VPSLLW, $4)       \
	VMOVDQU (low+32)(SI), Y2 \
	SIX(i+2, VPSLLW, $2)     \
	VMOVDQU low(SI), Y2      \
	VPSRLW  $4, Y2, Y2       \
	SIX(i+4, VPSRLW, $0)     \
	VMOVDQU (low+32)(SI), Y2 \
	VPSRLW  $4, Y2, Y2       \
	SIX(i+6, VPSRLW, $2)

// func q6_KAVX2(dst *float32, src *byte, blocks int)
TEXT ·q6_KAVX2(SB), NOSPLIT, $64-24
	ARGS
	FILL(0x0f0f0f0f, X7, Y7)
	FILL(0x30303030, X8, Y8)
	FILL(0x20202020, X9, Y9)
loop:
	HALF(208(SI), X15, Y15)
	VMOVDQU 192(SI), X2
	SCALES16
	HALF6(0, 0, 128)
	HALF6(8, 64, 160)
	NEXT(210, 256, loop)

// TWO puts the pairs of bits of Y1 that begin at bit n into Y2.
#define TWO(n) \
	VPSRLW n, Y1, Y2  \
	VPAND  Y7, Y2, Y2

// LOW3 puts the pairs less 4 into Y2, and not less where the bit of Y0 is set;
// the shift brings that bit to bit 2.
#define LOW3(i, n, shift, m) \
	TWO(n)               \
	shift  m, Y0, Y3     \
	VPANDN Y8, Y3, Y3    \
	VPSUBB Y3, Y2, Y2    \
	SUB16(i)

// SCALES3 unpacks 16 scales of 6 bits from 12 bytes, less 32, to X2.
#define SCALES3 \
	MOVL    96(SI), AX        \
	MOVL    100(SI), BX       \
	MOVL    104(SI), DX       \
	VMOVD   AX, X2            \
	VPINSRD $1, BX, X2, X2    \
	SHRL    $4, AX            \
	SHRL    $4, BX            \
	VPINSRD $2, AX, X2, X2    \
	VPINSRD $3, BX, X2, X2    \
	VPAND   X10, X2, X2       \
	MOVL    DX, R8            \
	SHLL    $4, R8            \
	VMOVD   R8, X3            \
	MOVL    DX, R8            \
	SHLL    $2, R8            \
	VPINSRD $1, R8, X3, X3    \
	VPINSRD $2, DX, X3, X3    \
	SHRL    $2, DX            \
	VPINSRD $3, DX, X3, X3    \
	VPAND   X11, X3, X3       \
	VPOR    X3, X2, X2        \
	VPSUBB  X9, X2, X2

// func q3_KAVX2(dst *float32, src *byte, blocks int)
TEXT ·q3_KAVX2(SB), NOSPLIT, $64-24
	ARGS
	FILL(0x03030303, X7, Y7)
	FILL(0x04040404, X8, Y8)
	FILL(0x20202020, X9, Y9)
	FILL(0x0f0f0f0f, X10, Y10)
	FILL(0x30303030, X11, Y11)
loop:
	HALF(108(SI), X15, Y15)
	SCALES3
	SCALES16
	VMOVDQU (SI), Y0
	VMOVDQU 32(SI), Y1
	LOW3(0, $0, VPSLLW, $2)
	LOW3(2, $2, VPSLLW, $1)
	LOW3(4, $4, VPSRLW, $0)
	LOW3(6, $6, VPSRLW, $1)
	VMOVDQU 64(SI), Y1
	LOW3(8, $0, VPSRLW, $2)
	LOW3(10, $2, VPSRLW, $3)
	LOW3(12, $4, VPSRLW, $4)
	LOW3(14, $6, VPSRLW, $5)
	NEXT(110, 256, loop)

// LOW2 writes 32 values of Q2_K from the pairs of Y1 that begin at bit n.
#define LOW2(i, n) \
	TWO(n)                           \
	VBROADCASTSS (4*(i))(SP), Y15      \
	VBROADCASTSS (4*(i)+4)(SP), Y14    \
	VBROADCASTSS (64+4*(i))(SP), Y13   \
	VBROADCASTSS (64+4*(i)+4)(SP), Y12 \
	FLOATS                           \
	TIMES(Y15, Y14)                  \
	LESS(Y13, Y12)                   \
	STORE(64*(i))

// func q2_KAVX2(dst *float32, src *byte, blocks int)
TEXT ·q2_KAVX2(SB), NOSPLIT, $128-24
	ARGS
	FILL(0x03030303, X7, Y7)
	FILL(0x0f0f0f0f, X10, Y10)
loop:
	HALF(80(SI), X15, Y15)
	HALF(82(SI), X14, Y14)
	VMOVDQU   (SI), X1
	VPAND     X10, X1, X2
	SCALES16
	VPSRLW    $4, X1, X2
	VPAND     X10, X2, X2
	VPMOVSXBD X2, Y3
	VPSRLDQ   $8, X2, X2
	VPMOVSXBD X2, Y4
	VCVTDQ2PS Y3, Y3
	VCVTDQ2PS Y4, Y4
	VMULPS    Y3, Y14, Y3
	VMULPS    Y4, Y14, Y4
	VMOVUPS   Y3, 64(SP)
	VMOVUPS   Y4, 96(SP)
	VMOVDQU   16(SI), Y1
	LOW2(0, $0)
	LOW2(2, $2)
	LOW2(4, $4)
	LOW2(6, $6)
	VMOVDQU   48(SI), Y1
	LOW2(8, $0)
	LOW2(10, $2)
	LOW2(12, $4)
	LOW2(14, $6)
	NEXT(84, 256, loop)
