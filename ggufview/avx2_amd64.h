// Every kernel has the same arguments: DI the values, SI the blocks, CX their
// number, at least one. Multiplications and additions stand apart, in the order
// of the plain functions, for ggml rounds twice; in an operation on two NaNs the
// first operand wins, and that is the product, as in the plain functions.

#define ARGS \
	MOVQ dst+0(FP), DI \
	MOVQ src+8(FP), SI \
	MOVQ blocks+16(FP), CX

// FILL sets each 32-bit lane of y, whose lower half is x.
#define FILL(value, x, y) \
	MOVL         $value, AX \
	VMOVD        AX, x      \
	VPBROADCASTD x, y

// HALF is the f16 at mem in all lanes of y.
#define HALF(mem, x, y) \
	VPBROADCASTW mem, x \
	VCVTPH2PS    x, y

// FLOATS widens the 32 signed bytes of Y2 to Y3, Y4, Y6, Y5.
#define FLOATS \
	VPMOVSXBD    X2, Y3     \
	VPSRLDQ      $8, X2, X4 \
	VPMOVSXBD    X4, Y4     \
	VEXTRACTI128 $1, Y2, X5 \
	VPMOVSXBD    X5, Y6     \
	VPSRLDQ      $8, X5, X5 \
	VPMOVSXBD    X5, Y5     \
	VCVTDQ2PS    Y3, Y3     \
	VCVTDQ2PS    Y4, Y4     \
	VCVTDQ2PS    Y6, Y6     \
	VCVTDQ2PS    Y5, Y5

// TIMES multiplies the first 16 of FLOATS with a, the others with b.
#define TIMES(a, b) \
	VMULPS Y3, a, Y3 \
	VMULPS Y4, a, Y4 \
	VMULPS Y6, b, Y6 \
	VMULPS Y5, b, Y5

// LESS subtracts a and b.
#define LESS(a, b) \
	VSUBPS a, Y3, Y3 \
	VSUBPS a, Y4, Y4 \
	VSUBPS b, Y6, Y6 \
	VSUBPS b, Y5, Y5

#define PLUS(a) \
	VADDPS a, Y3, Y3 \
	VADDPS a, Y4, Y4 \
	VADDPS a, Y6, Y6 \
	VADDPS a, Y5, Y5

// STORE writes the 32 values to byte off of the block's.
#define STORE(off) \
	VMOVUPS Y3, off(DI)      \
	VMOVUPS Y4, (off+32)(DI) \
	VMOVUPS Y6, (off+64)(DI) \
	VMOVUPS Y5, (off+96)(DI)

// NIBBLES puts 16 bytes into Y2: the low nibbles, then the high ones. Y7 is 0x0f.
#define NIBBLES(mem) \
	VMOVDQU     mem, X2        \
	VPSRLW      $4, X2, X3     \
	VINSERTI128 $1, X3, Y2, Y2 \
	VPAND       Y7, Y2, Y2

// NEXT goes on to the next block.
#define NEXT(bytes, values, loop) \
	ADDQ $bytes, SI      \
	ADDQ $(4*values), DI \
	DECQ CX              \
	JNZ  loop            \
	VZEROUPPER           \
	RET
