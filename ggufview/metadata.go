package ggufview

import (
	"iter"
	"math"
	"strconv"
)

// ValueType is the type of a metadata value (enum gguf_metadata_value_type).
type ValueType uint32

// The types of metadata values.
const (
	ValueUint8 ValueType = iota
	ValueInt8
	ValueUint16
	ValueInt16
	ValueUint32
	ValueInt32
	ValueFloat32
	ValueBool
	ValueString
	ValueArray
	ValueUint64
	ValueInt64
	ValueFloat64
)

// valueTypes is the only list of value types: the name, and the bytes of a
// value, 0 if they vary.
var valueTypes = [...]struct {
	name  string
	bytes int
}{
	ValueUint8:   {"uint8", 1},
	ValueInt8:    {"int8", 1},
	ValueUint16:  {"uint16", 2},
	ValueInt16:   {"int16", 2},
	ValueUint32:  {"uint32", 4},
	ValueInt32:   {"int32", 4},
	ValueFloat32: {"float32", 4},
	ValueBool:    {"bool", 1},
	ValueString:  {"string", 0},
	ValueArray:   {"array", 0},
	ValueUint64:  {"uint64", 8},
	ValueInt64:   {"int64", 8},
	ValueFloat64: {"float64", 8},
}

// Known reports whether GGUF defines the type.
func (t ValueType) Known() bool { return uint64(t) < uint64(len(valueTypes)) }

// Bytes is the size of a value, 0 for strings and arrays. Known types only.
func (t ValueType) Bytes() int { return valueTypes[t].bytes }

// String is the name of the type, "uint32"; an unknown one gives "value type 13".
func (t ValueType) String() string {
	if !t.Known() {
		return "value type " + strconv.FormatUint(uint64(t), 10)
	}
	return valueTypes[t].name
}

// KV is a key and where its value is.
type KV struct {
	Key   string
	Type  ValueType
	Elem  ValueType // of an array: the type of its elements; else the same as Type
	Count int64     // of an array: how many elements; else 1
	Off   int64     // where the value begins in the file, after the type

	end int64 // where it ends
}

const arrayHead = 12 // bytes before the elements: their type and number

// elements is the stored elements of an array, or the value itself.
func (f *File) elements(kv *KV) []byte {
	if kv.Type == ValueArray {
		return f.b[kv.Off+arrayHead : kv.end]
	}
	return f.b[kv.Off:kv.end]
}

// cutText splits stored strings after the first. It checks what Parse has
// checked already, because shared memory can be changed by others: then the
// string is cut short.
func (f *File) cutText(p []byte) (s, rest []byte) {
	if len(p) < 8 {
		return nil, nil
	}
	n := min(f.order().u64(p), uint64(len(p)-8))
	return p[8 : 8+n], p[8+n:]
}

func (f *File) order() byteOrder { return byteOrder(f.BigEndian) }

// bits is the number stored in p, 1, 2, 4 or 8 bytes.
func (f *File) bits(p []byte) uint64 {
	switch len(p) {
	case 1:
		return uint64(p[0])
	case 2:
		return uint64(f.order().u16(p))
	case 4:
		return uint64(f.order().u32(p))
	}
	return f.order().u64(p)
}

// signExtend extends the sign of a number stored in size bytes.
func signExtend(v uint64, size int) int64 {
	shift := 64 - 8*size
	return int64(v<<shift) >> shift
}

// Text returns the exact bytes of a string value: a slice of the mapped file.
func (f *File) Text(kv *KV) ([]byte, bool) {
	if kv.Type != ValueString {
		return nil, false
	}
	return f.b[kv.Off+8 : kv.end : kv.end], true
}

// Str returns a copy of a string value.
func (f *File) Str(key string) (string, bool) {
	kv, ok := f.Find(key)
	if !ok {
		return "", false
	}
	p, ok := f.Text(kv)
	return string(p), ok
}

// Uint returns a value of any integer type that is not negative.
func (f *File) Uint(key string) (uint64, bool) {
	kv, ok := f.Find(key)
	if !ok {
		return 0, false
	}
	switch v := f.bits(f.scalar(kv)); kv.Type {
	case ValueUint8, ValueUint16, ValueUint32, ValueUint64:
		return v, true
	case ValueInt8, ValueInt16, ValueInt32, ValueInt64:
		n := signExtend(v, kv.Type.Bytes())
		return uint64(n), n >= 0
	}
	return 0, false
}

// Float returns a value of type float32 or float64.
func (f *File) Float(key string) (float64, bool) {
	kv, ok := f.Find(key)
	if !ok {
		return 0, false
	}
	return asFloat(kv.Type, f.bits(f.scalar(kv)))
}

// scalar is the bytes of a number or bool, eight zero bytes for other types.
func (f *File) scalar(kv *KV) []byte {
	if kv.Type.Bytes() == 0 {
		return make([]byte, 8)
	}
	return f.b[kv.Off:kv.end]
}

func asFloat(t ValueType, v uint64) (float64, bool) {
	switch t {
	case ValueFloat32:
		return float64(math.Float32frombits(uint32(v))), true
	case ValueFloat64:
		return math.Float64frombits(v), true
	}
	return 0, false
}

// Strings iterates over a string or an array of strings; the bytes are slices
// of the mapped file. Other values give nothing.
func (f *File) Strings(kv *KV) iter.Seq2[int64, []byte] {
	return func(yield func(int64, []byte) bool) {
		if kv.Elem != ValueString {
			return
		}
		rest := f.elements(kv)
		for i := range kv.Count {
			var s []byte
			if s, rest = f.cutText(rest); !yield(i, s) {
				return
			}
		}
	}
}

// ValueText is the value as a metadata file shows it: a string as its exact
// bytes (a slice of the mapped file), a number or bool as a line, an array as
// JSON and a newline.
func (f *File) ValueText(kv *KV) []byte {
	if p, ok := f.Text(kv); ok {
		return p
	}
	if kv.Type == ValueArray {
		return append(f.AppendValueJSON(make([]byte, 0, f.ValueTextLen(kv)), kv), '\n')
	}
	return append(f.appendNumber(nil, kv.Type, f.scalar(kv)), '\n')
}

// ValueTextLen is len(ValueText(kv)), found without building an array's text.
func (f *File) ValueTextLen(kv *KV) int64 {
	switch kv.Type {
	case ValueString:
		return kv.end - kv.Off - 8
	case ValueArray:
		return f.ValueJSONLen(kv) + 1
	}
	return int64(len(f.ValueText(kv)))
}

// appendNumber writes a number or bool as text; not finite ones are NaN,
// Infinity and -Infinity.
func (f *File) appendNumber(dst []byte, t ValueType, p []byte) []byte {
	v := f.bits(p)
	switch t {
	case ValueBool: // any byte but 0 is true, as in llama.cpp
		return strconv.AppendBool(dst, v != 0)
	case ValueFloat32, ValueFloat64:
		x, _ := asFloat(t, v)
		return appendFloat(dst, x)
	case ValueInt8, ValueInt16, ValueInt32, ValueInt64:
		return strconv.AppendInt(dst, signExtend(v, len(p)), 10)
	}
	return strconv.AppendUint(dst, v, 10)
}

func appendFloat(dst []byte, x float64) []byte {
	switch {
	case math.IsNaN(x):
		return append(dst, "NaN"...)
	case math.IsInf(x, 1):
		return append(dst, "Infinity"...)
	case math.IsInf(x, -1):
		return append(dst, "-Infinity"...)
	}
	return strconv.AppendFloat(dst, x, 'g', -1, 64)
}
