package ggufview

import "strconv"

// Type is a ggml tensor type as GGUF stores it (enum ggml_type).
type Type uint32

// The ggml types that a converter or a test has to name.
const (
	F32    Type = 0
	F16    Type = 1
	Q4_0   Type = 2
	Q4_1   Type = 3
	Q5_0   Type = 6
	Q5_1   Type = 7
	Q8_0   Type = 8
	Q2_K   Type = 10
	Q3_K   Type = 11
	Q4_K   Type = 12
	Q5_K   Type = 13
	Q6_K   Type = 14
	IQ4_NL Type = 20
	IQ4_XS Type = 23
	I8     Type = 24
	I16    Type = 25
	I32    Type = 26
	I64    Type = 27
	F64    Type = 28
	BF16   Type = 30
	MXFP4  Type = 39
	NVFP4  Type = 40
)

// typeInfo is one row of the type table: how many values make a block, how
// many bytes hold it, the NumPy kind of plain types, which of its fields are
// wider than a byte, and how a run of whole little-endian blocks becomes
// float32 and is made from it. The converters are given matching lengths; nil
// means that ggml has none.
type typeInfo struct {
	name    string
	block   int    // values in a block
	bytes   int    // bytes in a block
	numpy   string // NumPy kind and size without byte order ("f4"); "" if NumPy has no such type
	wide    wide
	dequant func(dst []float32, src []byte)
	quant   func(dst []byte, src []float32)
}

// wide lists the fields of a block that a big-endian file stores the other way
// round: n consecutive words of width bytes, from byte off of the block.
//
// A big-endian block is the memory image of ggml's struct on a big-endian
// machine: members of ggml-common.h that are declared as 16-bit or wider are
// swapped at that width, and so are byte arrays that ggml-quants.c reads as
// whole words (qh of Q5_0 and Q5_1, the scales of IQ3_XXS and IQ1_M). All other
// bytes stay where they are. The scripts of gguf-py agree where they know a type.
type wide []struct{ off, width, n int }

// types is the only list of tensor types, indexed by ggml's id. Rows without a
// name are ids that ggml removed; a file that uses one is refused.
// Source: ggml/include/ggml.h (enum ggml_type) and ggml/src/ggml-common.h.
var types = [...]typeInfo{
	0:  {"F32", 1, 4, "f4", wide{{0, 4, 1}}, dequantF32, quantF32},
	1:  {"F16", 1, 2, "f2", wide{{0, 2, 1}}, dequantF16, quantF16},
	2:  {"Q4_0", 32, 18, "", wide{{0, 2, 1}}, dequantQ4_0, quantQ4_0},
	3:  {"Q4_1", 32, 20, "", wide{{0, 2, 2}}, dequantQ4_1, quantQ4_1},
	6:  {"Q5_0", 32, 22, "", wide{{0, 2, 1}, {2, 4, 1}}, dequantQ5_0, quantQ5_0},
	7:  {"Q5_1", 32, 24, "", wide{{0, 2, 2}, {4, 4, 1}}, dequantQ5_1, quantQ5_1},
	8:  {"Q8_0", 32, 34, "", wide{{0, 2, 1}}, dequantQ8_0, quantQ8_0},
	9:  {"Q8_1", 32, 36, "", wide{{0, 2, 2}}, nil, nil}, // ggml has no to_float: an intermediate of products
	10: {"Q2_K", 256, 84, "", wide{{80, 2, 2}}, dequantQ2_K, quantQ2_K},
	11: {"Q3_K", 256, 110, "", wide{{108, 2, 1}}, dequantQ3_K, quantQ3_K},
	12: {"Q4_K", 256, 144, "", wide{{0, 2, 2}}, dequantQ4_K, quantQ4_K},
	13: {"Q5_K", 256, 176, "", wide{{0, 2, 2}}, dequantQ5_K, quantQ5_K},
	14: {"Q6_K", 256, 210, "", wide{{208, 2, 1}}, dequantQ6_K, quantQ6_K},
	15: {"Q8_K", 256, 292, "", wide{{0, 4, 1}, {260, 2, 16}}, nil, nil}, // intermediate only, like Q8_1
	16: {"IQ2_XXS", 256, 66, "", wide{{0, 2, 33}}, dequantIQ2_XXS, nil},
	17: {"IQ2_XS", 256, 74, "", wide{{0, 2, 33}}, dequantIQ2_XS, nil},
	18: {"IQ3_XXS", 256, 98, "", wide{{0, 2, 1}, {66, 4, 8}}, dequantIQ3_XXS, nil},
	19: {"IQ1_S", 256, 50, "", wide{{0, 2, 1}, {34, 2, 8}}, dequantIQ1_S, nil},
	20: {"IQ4_NL", 32, 18, "", wide{{0, 2, 1}}, dequantIQ4_NL, nil},
	21: {"IQ3_S", 256, 110, "", wide{{0, 2, 1}}, dequantIQ3_S, nil},
	22: {"IQ2_S", 256, 82, "", wide{{0, 2, 1}}, dequantIQ2_S, nil},
	23: {"IQ4_XS", 256, 136, "", wide{{0, 2, 2}}, dequantIQ4_XS, nil},
	24: {"I8", 1, 1, "i1", nil, dequantI8, nil},
	25: {"I16", 1, 2, "i2", wide{{0, 2, 1}}, dequantI16, nil},
	26: {"I32", 1, 4, "i4", wide{{0, 4, 1}}, dequantI32, nil},
	27: {"I64", 1, 8, "i8", wide{{0, 8, 1}}, dequantI64, nil},
	28: {"F64", 1, 8, "f8", wide{{0, 8, 1}}, dequantF64, quantF64},
	29: {"IQ1_M", 256, 56, "", wide{{48, 2, 4}}, dequantIQ1_M, nil},
	30: {"BF16", 1, 2, "", wide{{0, 2, 1}}, dequantBF16, quantBF16},
	34: {"TQ1_0", 256, 54, "", wide{{52, 2, 1}}, dequantTQ1_0, nil},
	35: {"TQ2_0", 256, 66, "", wide{{64, 2, 1}}, dequantTQ2_0, nil},
	39: {"MXFP4", 32, 17, "", nil, dequantMXFP4, nil},
	40: {"NVFP4", 64, 36, "", nil, dequantNVFP4, nil},
	41: {"Q1_0", 128, 18, "", wide{{0, 2, 1}}, dequantQ1_0, nil},
	42: {"Q2_0", 64, 18, "", wide{{0, 2, 1}}, dequantQ2_0, nil},
}

// Known reports whether ggml has the type today (ids it removed are not known).
func (t Type) Known() bool { return int64(t) < int64(len(types)) && types[t].name != "" }

// String is ggml's name in capitals, "Q4_K"; an unknown id gives "type 57".
func (t Type) String() string {
	if !t.Known() {
		return "type " + strconv.FormatUint(uint64(t), 10)
	}
	return types[t].name
}

// BlockElements is the number of values in a block, 1 for plain types. Known types only.
func (t Type) BlockElements() int { return types[t].block }

// BlockBytes is the number of bytes that hold a block. Known types only.
func (t Type) BlockBytes() int { return types[t].bytes }

// CanDequantize reports whether Dequantize knows the type.
func (t Type) CanDequantize() bool { return t.Known() && types[t].dequant != nil }

// CanQuantize reports whether Quantize knows the type.
func (t Type) CanQuantize() bool { return t.Known() && types[t].quant != nil }

// NumpyDtype is NumPy's type string of a plain type, "<f4" or ">i8"; "" when
// NumPy has no such type, as for BF16 and block-quantised types.
func (t Type) NumpyDtype(bigEndian bool) string {
	switch {
	case !t.Known() || types[t].numpy == "":
		return ""
	case types[t].bytes == 1:
		return "|" + types[t].numpy
	case bigEndian:
		return ">" + types[t].numpy
	}
	return "<" + types[t].numpy
}
