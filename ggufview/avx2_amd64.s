#include "textflag.h"
#include "avx2_amd64.h"

// func cpuid(leaf uint32) (ebx, ecx uint32)
TEXT ·cpuid(SB), NOSPLIT, $0-16
	MOVL leaf+0(FP), AX
	XORL CX, CX
	CPUID
	MOVL BX, ebx+8(FP)
	MOVL CX, ecx+12(FP)
	RET

// func xgetbv() uint32
TEXT ·xgetbv(SB), NOSPLIT, $0-4
	XORL CX, CX
	XGETBV
	MOVL AX, ret+0(FP)
	RET

// func f16AVX2(dst *float32, src *byte, blocks int): blocks of 8 values
TEXT ·f16AVX2(SB), NOSPLIT, $0-24
	ARGS
loop:
	VCVTPH2PS (SI), Y0
	VMOVUPS   Y0, (DI)
	NEXT(16, 8, loop)

// func bf16AVX2(dst *float32, src *byte, blocks int): blocks of 8 values
TEXT ·bf16AVX2(SB), NOSPLIT, $0-24
	ARGS
loop:
	VPMOVZXWD (SI), Y0
	VPSLLD    $16, Y0, Y0
	VMOVUPS   Y0, (DI)
	NEXT(16, 8, loop)

// func q8_0AVX2(dst *float32, src *byte, blocks int)
TEXT ·q8_0AVX2(SB), NOSPLIT, $0-24
	ARGS
loop:
	HALF((SI), X15, Y15)
	VPMOVSXBD 2(SI), Y3
	VPMOVSXBD 10(SI), Y4
	VPMOVSXBD 18(SI), Y6
	VPMOVSXBD 26(SI), Y5
	VCVTDQ2PS Y3, Y3
	VCVTDQ2PS Y4, Y4
	VCVTDQ2PS Y6, Y6
	VCVTDQ2PS Y5, Y5
	TIMES(Y15, Y15)
	STORE(0)
	NEXT(34, 32, loop)

// func q4_0AVX2(dst *float32, src *byte, blocks int)
TEXT ·q4_0AVX2(SB), NOSPLIT, $0-24
	ARGS
	FILL(0x0f0f0f0f, X7, Y7)
	FILL(0x08080808, X8, Y8)
loop:
	HALF((SI), X15, Y15)
	NIBBLES(2(SI))
	VPSUBB Y8, Y2, Y2
	FLOATS
	TIMES(Y15, Y15)
	STORE(0)
	NEXT(18, 32, loop)

// func q4_1AVX2(dst *float32, src *byte, blocks int)
TEXT ·q4_1AVX2(SB), NOSPLIT, $0-24
	ARGS
	FILL(0x0f0f0f0f, X7, Y7)
loop:
	HALF((SI), X15, Y15)
	HALF(2(SI), X14, Y14)
	NIBBLES(4(SI))
	FLOATS
	TIMES(Y15, Y15)
	PLUS(Y14)
	STORE(0)
	NEXT(20, 32, loop)

// func iq4_nlAVX2(dst *float32, src *byte, blocks int)
TEXT ·iq4_nlAVX2(SB), NOSPLIT, $0-24
	ARGS
	FILL(0x0f0f0f0f, X7, Y7)
	VBROADCASTI128 ·codes4NLBytes(SB), Y8
loop:
	HALF((SI), X15, Y15)
	NIBBLES(2(SI))
	VPSHUFB Y2, Y8, Y2
	FLOATS
	TIMES(Y15, Y15)
	STORE(0)
	NEXT(18, 32, loop)

// Byte i of 32 looks at byte i/8 of a word, and there at bit i%8.
DATA spread<>+0(SB)/8, $0x0000000000000000
DATA spread<>+8(SB)/8, $0x0101010101010101
DATA spread<>+16(SB)/8, $0x0202020202020202
DATA spread<>+24(SB)/8, $0x0303030303030303
GLOBL spread<>(SB), RODATA|NOPTR, $32
DATA eachBit<>+0(SB)/8, $0x8040201008040201
GLOBL eachBit<>(SB), RODATA|NOPTR, $8

// BITS sets each byte of Y3 to 0xff where its bit of the word at mem is set.
#define BITS(mem) \
	VPBROADCASTD mem, Y3     \
	VPSHUFB      Y9, Y3, Y3  \
	VPAND        Y10, Y3, Y3 \
	VPCMPEQB     Y10, Y3, Y3

// func q5_0AVX2(dst *float32, src *byte, blocks int)
TEXT ·q5_0AVX2(SB), NOSPLIT, $0-24
	ARGS
	FILL(0x0f0f0f0f, X7, Y7)
	FILL(0xf0f0f0f0, X8, Y8)
	VMOVDQU      spread<>(SB), Y9
	VPBROADCASTQ eachBit<>(SB), Y10
loop:
	HALF((SI), X15, Y15)
	NIBBLES(6(SI))
	BITS(2(SI))
	VPANDN Y8, Y3, Y3 // without a fifth bit it is the code less 16
	VPOR   Y3, Y2, Y2
	FLOATS
	TIMES(Y15, Y15)
	STORE(0)
	NEXT(22, 32, loop)

// func q5_1AVX2(dst *float32, src *byte, blocks int)
TEXT ·q5_1AVX2(SB), NOSPLIT, $0-24
	ARGS
	FILL(0x0f0f0f0f, X7, Y7)
	FILL(0x10101010, X8, Y8)
	VMOVDQU      spread<>(SB), Y9
	VPBROADCASTQ eachBit<>(SB), Y10
loop:
	HALF((SI), X15, Y15)
	HALF(2(SI), X14, Y14)
	NIBBLES(8(SI))
	BITS(4(SI))
	VPAND Y8, Y3, Y3
	VPOR  Y3, Y2, Y2
	FLOATS
	TIMES(Y15, Y15)
	PLUS(Y14)
	STORE(0)
	NEXT(24, 32, loop)

// func mxfp4AVX2(dst *float32, src *byte, blocks int)
TEXT ·mxfp4AVX2(SB), NOSPLIT, $0-24
	ARGS
	FILL(0x0f0f0f0f, X7, Y7)
	VBROADCASTI128 ·codesFP4Bytes(SB), Y8
	LEAQ           ·e8m0Halves(SB), R8
loop:
	MOVBLZX      (SI), AX
	VBROADCASTSS (R8)(AX*4), Y15
	NIBBLES(1(SI))
	VPSHUFB Y2, Y8, Y2
	FLOATS
	TIMES(Y15, Y15)
	STORE(0)
	NEXT(17, 32, loop)

// NV writes sub-blocks i and i+1 of 16 values, whose nibbles are 16 bytes at off.
#define NV(i, off) \
	MOVBLZX      i(SI), AX       \
	VBROADCASTSS (R8)(AX*4), Y15 \
	MOVBLZX      (i+1)(SI), AX   \
	VBROADCASTSS (R8)(AX*4), Y14 \
	NIBBLES(off(SI))             \
	VPERMQ       $0xd8, Y2, Y2   \
	VPSHUFB      Y2, Y8, Y2      \
	FLOATS                       \
	TIMES(Y15, Y14)              \
	STORE(64*i)

// func nvfp4AVX2(dst *float32, src *byte, blocks int)
TEXT ·nvfp4AVX2(SB), NOSPLIT, $0-24
	ARGS
	FILL(0x0f0f0f0f, X7, Y7)
	VBROADCASTI128 ·codesFP4Bytes(SB), Y8
	LEAQ           ·ue4m3Half(SB), R8
loop:
	NV(0, 4)
	NV(2, 20)
	NEXT(36, 64, loop)

// XS writes sub-block i, whose low scale bits are byte l shifted by n.
#define XS(i, l, n) \
	MOVBLZX      l(SI), AX          \
	SHRL         n, AX              \
	ANDL         $15, AX            \
	MOVL         BX, DX             \
	SHRL         $(2*i), DX         \
	ANDL         $3, DX             \
	SHLL         $4, DX             \
	LEAL         -32(AX)(DX*1), AX  \
	VCVTSI2SSL   AX, X14, X14       \
	VMULSS       X14, X15, X14      \
	VBROADCASTSS X14, Y14           \
	NIBBLES((8+16*i)(SI))           \
	VPSHUFB      Y2, Y8, Y2         \
	FLOATS                          \
	TIMES(Y14, Y14)                 \
	STORE(128*i)

// func iq4_xsAVX2(dst *float32, src *byte, blocks int)
TEXT ·iq4_xsAVX2(SB), NOSPLIT, $0-24
	ARGS
	FILL(0x0f0f0f0f, X7, Y7)
	VBROADCASTI128 ·codes4NLBytes(SB), Y8
loop:
	HALF((SI), X15, Y15)
	MOVWLZX 2(SI), BX
	XS(0, 4, $0)
	XS(1, 4, $4)
	XS(2, 5, $0)
	XS(3, 5, $4)
	XS(4, 6, $0)
	XS(5, 6, $4)
	XS(6, 7, $0)
	XS(7, 7, $4)
	NEXT(136, 256, loop)
