package ggufview

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// mustBytes is the file that a Spec describes.
func mustBytes(t testing.TB, s Spec) []byte {
	t.Helper()
	b, err := s.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustParse(t testing.TB, b []byte) *File {
	t.Helper()
	f, err := Parse(b, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// sample has every kind of value and a few tensors. With an even length of
// data it ends at its last tensor: no padding.
func sample(bigEndian bool) Spec {
	return Spec{
		BigEndian: bigEndian,
		KV: []SpecKV{
			{"general.architecture", "llama"},
			{"u8", uint8(200)}, {"i8", int8(-2)}, {"u16", uint16(60000)}, {"i16", int16(-3)},
			{"u32", uint32(4e9)}, {"i32", int32(-4)}, {"u64", uint64(math.MaxUint64)}, {"i64", int64(math.MinInt64)},
			{"f32", float32(0.1)}, {"f64", 0.1}, {"yes", true}, {"no", false},
			{"text", "a\"b\\c\nd\x00\xffé"}, {"empty", ""},
			{"strings", []string{"x", "", "y\tz"}}, {"none", []string{}},
			{"floats", []float32{1, float32(math.NaN()), float32(math.Inf(-1)), 1e20}},
			{"bools", []bool{true, false}}, {"i16s", []int16{-1, 1}}, {"any", []any{uint32(1), uint32(2)}},
		},
		Tensors: []SpecTensor{
			{Name: "a.weight", Type: F32, NE: []int64{2, 3}, Data: []byte("0123456789abcdefABCDEFGH")},
			{Name: "b/../c", Type: Q4_K, NE: []int64{256, 2}},
			{Name: "scalar", Type: I8, Data: []byte{7}},
			{Name: "zero", Type: F16, NE: []int64{4, 0}},
			{Name: "last", Type: BF16, NE: []int64{16, 1, 1, 1}},
		},
	}
}

func TestRoundTrip(t *testing.T) {
	for _, big := range []bool{false, true} {
		b := mustBytes(t, sample(big))
		f := mustParse(t, b)
		if f.BigEndian != big || f.Version != 3 || f.Alignment != 32 || len(f.KVs) != 21 {
			t.Errorf("header: %+v", f)
		}
		want := []Tensor{
			{Name: "a.weight", Type: F32, NE: [4]int64{2, 3, 1, 1}, Dims: 2, Offset: 0, Bytes: 24, Elements: 6},
			{Name: "b/../c", Type: Q4_K, NE: [4]int64{256, 2, 1, 1}, Dims: 2, Offset: 32, Bytes: 288, Elements: 512},
			{Name: "scalar", Type: I8, NE: [4]int64{1, 1, 1, 1}, Dims: 0, Offset: 320, Bytes: 1, Elements: 1},
			{Name: "zero", Type: F16, NE: [4]int64{4, 0, 1, 1}, Dims: 2, Offset: 352, Bytes: 0, Elements: 0},
			{Name: "last", Type: BF16, NE: [4]int64{16, 1, 1, 1}, Dims: 4, Offset: 352, Bytes: 32, Elements: 16},
		}
		for i, w := range want {
			got := f.TensorAt(i)
			w.Offset, w.Index = w.Offset+f.DataOffset, i
			if got != w {
				t.Errorf("tensor %d: %+v, want %+v", i, got, w)
			}
			if p, ok := f.Tensor(w.Name); !ok || *p != got {
				t.Errorf("Tensor(%q) = %v, %v", w.Name, p, ok)
			}
		}
		if a := f.TensorAt(0); string(b[a.Offset:a.Offset+a.Bytes]) != "0123456789abcdefABCDEFGH" {
			t.Errorf("data of %s: %q", a.Name, b[a.Offset:a.Offset+a.Bytes])
		}
		if s := shapeAt(f, 0); !reflect.DeepEqual(s, []int64{3, 2}) {
			t.Errorf("shape %v, want [3 2]", s)
		}
		if len(shapeAt(f, 2)) != 0 {
			t.Error("a scalar has a shape")
		}
		if _, ok := f.Tensor("nosuch"); ok {
			t.Error("found a tensor that is not there")
		}
		if _, ok := f.Find("nosuch"); ok {
			t.Error("found a key that is not there")
		}
		useAll(t, f)
	}
}

func shapeAt(f *File, i int) []int64 {
	t := f.TensorAt(i)
	return t.Shape()
}

func allTensors(f *File) (out []Tensor) {
	for _, t := range f.Tensors() {
		out = append(out, t)
	}
	return out
}

func TestTruncation(t *testing.T) {
	for _, big := range []bool{false, true} {
		b := mustBytes(t, sample(big))
		header := int(mustParse(t, b).HeaderBytes)
		for n := range b {
			short := b[:n:n]
			if _, err := Parse(short, int64(n)); !incomplete(err) {
				t.Fatalf("file of %d instead of %d bytes: %v", n, len(b), err)
			}
			if _, err := Open(bytes.NewReader(short), int64(n)); !incomplete(err) {
				t.Fatalf("Open of %d instead of %d bytes: %v", n, len(b), err)
			}
			if _, err := Parse(short, int64(len(b))); incomplete(err) != (n < header) {
				t.Fatalf("window of %d bytes, header of %d: %v", n, header, err)
			}
		}
	}
}

func incomplete(err error) bool {
	fe := asFormat(err)
	return fe != nil && fe.Incomplete
}

func TestNamesOutliveTheMapping(t *testing.T) {
	b := mustBytes(t, sample(false))
	f := mustParse(t, b)
	if got := f.TensorAt(0).Name; got != "a.weight" {
		t.Errorf("%q", got)
	}
	clear(b)
	if f.KVs[0].Key != "general.architecture" || f.TensorAt(4).Name != "last" {
		t.Errorf("%q, %q", f.KVs[0].Key, f.TensorAt(4).Name)
	}
	if _, ok := f.Tensor("last"); !ok {
		t.Error("index lost its names")
	}
}

// TestChangedAfterParse plays a writer that changes shared memory under us.
func TestChangedAfterParse(t *testing.T) {
	for _, fill := range []byte{0, 1, 0x7f, 0xff} {
		b := mustBytes(t, sample(false))
		f := mustParse(t, b)
		for i := range b {
			b[i] = fill
		}
		useValues(f)
	}
}

func TestOpen(t *testing.T) {
	var buf bytes.Buffer
	if _, err := (Gen{Tokens: 150_000, Tensors: 50}).WriteTo(&buf); err != nil {
		t.Fatal(err)
	}
	want := mustParse(t, buf.Bytes())
	got, err := Open(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.AppendMetadataJSON(nil), want.AppendMetadataJSON(nil)) ||
		!slices.Equal(allTensors(got), allTensors(want)) {
		t.Error("Open and Parse differ")
	}
	if _, err := Open(bytes.NewReader(buf.Bytes()[:100]), int64(buf.Len())); !errors.Is(err, io.EOF) {
		t.Errorf("reader shorter than the file: %v", err)
	}
	if _, err := Open(bytes.NewReader(nil), -1); asFormat(err) == nil {
		t.Errorf("negative size: %v", err)
	}
}

func TestOpenRefusesHugeHeader(t *testing.T) {
	head := binary.LittleEndian.AppendUint64(hostile(0, 1, "k", ValueArray), 1<<28)
	copy(head[len(head)-12:], []byte{byte(ValueUint64), 0, 0, 0})
	size := int64(1 << 40)
	if _, err := Open(io.NewSectionReader(endless(head), 0, size), size); err == nil || !strings.Contains(err.Error(), "header of more than") {
		t.Errorf("2 GiB of header: %v", err)
	}
}

// endless is a file with a beginning and zeros without end.
type endless []byte

func (e endless) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(e)) {
		copy(p, e[off:])
	}
	return len(p), nil
}

// hostile is the start of a file: counts, and a key with the type of its value.
// For an array there is room for the element type at the end.
func hostile(tensors, kvs uint64, key string, t ValueType) []byte {
	b := binary.LittleEndian.AppendUint32([]byte("GGUF"), 3)
	b = binary.LittleEndian.AppendUint64(b, tensors)
	b = binary.LittleEndian.AppendUint64(b, kvs)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(key)))
	b = binary.LittleEndian.AppendUint32(append(b, key...), uint32(t))
	if t == ValueArray {
		b = binary.LittleEndian.AppendUint32(b, 0)
	}
	return b
}

// refusal is a change of one field that makes a good file a bad one.
type refusal struct {
	name       string
	off        int64
	width      int // in bytes; 16 is a pair of the same values
	value      uint64
	at         int64 // where the error is
	incomplete bool
	msg        string
}

// refusals are the changes that TestRefusals makes to its file.
func refusals(good []byte) []refusal {
	at := func(mark string, plus int) int64 { return int64(bytes.Index(good, []byte(mark)) + len(mark) + plus) }
	align, list, str := at("general.alignment", 0), at("list", 0), at("\x00s", 0)
	w, v := at("\x01\x00\x00\x00\x00\x00\x00\x00w", 0), at("\x01\x00\x00\x00\x00\x00\x00\x00v", 0)
	const short = true
	return []refusal{
		{"magic", 0, 4, 0x47475546, 0, false, "magic"},
		{"version 0", 4, 4, 0, 4, false, "version 0"},
		{"version 1", 4, 4, 1, 4, false, "version 1 is not supported"},
		{"version 4", 4, 4, 4, 4, false, "version 4"},
		{"tensor count -1", 8, 8, math.MaxUint64, 8, false, "limit"},
		{"tensor count 1000", 8, 8, 1000, 8, short, "1000 tensors"},
		{"tensor count 10, which keys leave no room for", 8, 8, 10, 8, short, "10 tensors"},
		{"key count 2^63", 16, 8, 1 << 63, 16, false, "limit"},
		{"key count 1000", 16, 8, 1000, 16, short, "1000 keys"},
		{"key length -1", 24, 8, math.MaxUint64, 24, false, "limit"},
		{"key length 60000", 24, 8, 60000, 24, short, "key needs"},
		{"empty key", 24, 8, 0, 24, false, "empty key"},
		{"value type 13", str, 4, 13, str, false, "value type 13"},
		{"alignment of another type", align, 4, 5, align + 4, false, "int32"},
		{"alignment 0", align + 4, 4, 0, align + 4, false, "power of two"},
		{"alignment 24", align + 4, 4, 24, align + 4, false, "power of two"},
		{"alignment 2^31", align + 4, 4, 1 << 31, v + 24, short, "padding"},
		{"alignment 64", align + 4, 4, 64, v + 16, false, "multiple"}, // the second tensor is at 96
		{"element type 9", list + 4, 4, 9, list + 4, false, "array of arrays"},
		{"element type 99", list + 4, 4, 99, list + 4, false, "value type 99"},
		{"element count 2^61", list + 8, 8, 1 << 61, list + 8, false, "limit"},
		{"element count 2^30", list + 8, 8, 1 << 30, list + 8, short, "array"},
		{"string length 2^31", str + 4, 8, 1 << 31, str + 4, false, "limit"},
		{"string length 2^30", str + 4, 8, 1 << 30, str + 4, short, "string"},
		{"name length 2^20", w - 9, 8, 1 << 20, w - 9, false, "limit"},
		{"5 dimensions", w, 4, 5, w, false, "5 dimensions"},
		{"dimension -1", w + 4, 8, math.MaxUint64, w + 4, false, "negative"},
		{"dimensions 2^32 * 2^32", w + 4, 16, 1 << 32, w + 4, false, "elements"},
		{"row of half a block", w + 4, 8, 16, w + 4, false, "blocks"},
		{"bytes beyond 2^63", v + 4, 8, 1 << 61, v + 4, false, "bytes"},
		{"removed type", w + 20, 4, 4, w + 20, false, "type 4"},
		{"unknown type", w + 20, 4, 43, w + 20, false, "type 43"},
		{"offset -32", w + 24, 8, math.MaxUint64 - 31, w + 24, false, "beyond any file"},
		{"offset 2^63-96", w + 24, 8, 1<<63 - 96, w + 24, false, "beyond any file"},
		{"offset 1", w + 24, 8, 1, w + 24, false, "multiple"},
		{"offset past the end", w + 24, 8, 1 << 20, w + 24, short, "tensor data needs"},
		{"tensors overlap in part", v + 16, 8, 32, v - 9, false, "overlap in part"},
		{"same name twice", v - 1, 1, 'w', v - 9, false, "twice"},
	}
}

func (c refusal) apply(good []byte) []byte {
	b := bytes.Clone(good)
	switch c.width {
	case 1:
		b[c.off] = byte(c.value)
	case 4:
		binary.LittleEndian.PutUint32(b[c.off:], uint32(c.value))
	case 16:
		binary.LittleEndian.PutUint64(b[c.off+8:], c.value)
		fallthrough
	default:
		binary.LittleEndian.PutUint64(b[c.off:], c.value)
	}
	return b
}

// TestRefusals changes one field of a good file and expects the error there.
func TestRefusals(t *testing.T) {
	good := mustBytes(t, Spec{
		KV:      []SpecKV{{"general.alignment", uint32(32)}, {"list", []uint64{1, 2}}, {"s", "text"}},
		Tensors: []SpecTensor{{Name: "w", Type: Q8_0, NE: []int64{32, 2}}, {Name: "v", Type: F32, NE: []int64{8}}},
	})
	for _, c := range refusals(good) {
		_, err := Parse(c.apply(good), int64(len(good)))
		fe := asFormat(err)
		if fe == nil || fe.Off != c.at || fe.Incomplete != c.incomplete || !strings.Contains(fe.Msg, c.msg) {
			t.Errorf("%s: %v, want %q at byte %d", c.name, err, c.msg, c.at)
		}
	}
}

func TestDuplicateKey(t *testing.T) {
	b := mustBytes(t, Spec{KV: []SpecKV{{"a", true}, {"b", true}, {"a", false}}})
	if _, err := Parse(b, int64(len(b))); err == nil || err.Error() != `at byte 52: key "a" appears twice, first as number 1` {
		t.Error(err)
	}
}

func TestLimitOfStringsInArrays(t *testing.T) {
	b := binary.LittleEndian.AppendUint64(hostile(0, 1, "k", ValueArray), maxStrings+1)
	b[len(b)-12] = byte(ValueString)
	if _, err := Parse(b, 1<<40); err == nil || incomplete(err) || !strings.Contains(err.Error(), "strings in arrays") {
		t.Error(err)
	}
}

func TestLongNamesAreCutInErrors(t *testing.T) {
	w := SpecTensor{Name: strings.Repeat("long", 1000), Type: I8}
	b := mustBytes(t, Spec{Tensors: []SpecTensor{w, w}})
	if _, err := Parse(b, int64(len(b))); err == nil || len(err.Error()) > 200 {
		t.Error(err)
	}
}

// TestZeroDimensionNoExcuse: elsewhere the product is not checked once it is 0.
func TestZeroDimensionNoExcuse(t *testing.T) {
	for _, ne := range [][4]int64{{0, 1 << 40, 1 << 40, 1}, {1 << 40, 1 << 40, 0, 1}, {1 << 16, 1 << 16, 1 << 16, 1 << 16}} {
		if _, _, why := storedSize(F32, &ne); why == "" {
			t.Errorf("%v has a size", ne)
		}
	}
}

func TestHostileHeadersAreCheap(t *testing.T) {
	const size = 1 << 20
	zeros := func(head []byte) []byte { return append(head, make([]byte, size-len(head))...) }
	strings := binary.LittleEndian.AppendUint64(hostile(0, 1, "k", ValueArray), size/8)
	copy(strings[len(strings)-12:], []byte{byte(ValueString), 0, 0, 0})
	var names bytes.Buffer
	for i := range 26000 {
		names.WriteString(fmt.Sprintf("\x08\x00\x00\x00\x00\x00\x00\x00%08d", i))
		names.Write(make([]byte, 16))
	}
	table := binary.LittleEndian.AppendUint64(append([]byte("GGUF"), 3, 0, 0, 0), 26000)
	table = append(binary.LittleEndian.AppendUint64(table, 0), names.Bytes()...)
	for name, b := range map[string][]byte{
		"as many keys as fit":    zeros(hostile(0, (size-24)/14, "k", ValueBool)),
		"as many tensors as fit": zeros(hostile((size-24)/24, 0, "", 0)),
		"empty strings":          zeros(strings),
		"26000 tensors":          table,
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		Parse(b, int64(len(b)))
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 10*size || took > time.Second {
			t.Errorf("%s: allocated %d bytes, took %v", name, n, took)
		}
	}
}

// TestNoAllocationPerEntry: a vocabulary costs nothing, tensors a few big blocks.
func TestNoAllocationPerEntry(t *testing.T) {
	var buf bytes.Buffer
	if _, err := (Gen{Tokens: 20_000, Tensors: 2000}).WriteTo(&buf); err != nil {
		t.Fatal(err)
	}
	n := testing.AllocsPerRun(5, func() { mustParse(t, buf.Bytes()) })
	if n > 40 {
		t.Errorf("%v allocations", n)
	}
}
