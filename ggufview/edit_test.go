package ggufview

import (
	"bytes"
	"testing"
)

func TestRewrite(t *testing.T) {
	for _, big := range []bool{false, true} {
		spec := Spec{BigEndian: big, KV: []SpecKV{
			{"general.architecture", "llama"}, {"a", uint32(7)}, {"b", []string{"x", "y"}}, {"c", float32(0.5)},
		}, Tensors: []SpecTensor{{Name: "t", NE: []int64{4}, Type: F32, Data: bytes.Repeat([]byte("abcd"), 4)}}}
		b, err := spec.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		f, err := Parse(b, int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		head, err := f.Rewrite([]KeyEdit{
			{"a", uint32(8)}, {"b", nil}, {"new", []int32{1, -2}}, {"general.architecture", "a much longer name than before, to move the data"}, {"gone", nil},
		})
		if err != nil {
			t.Fatal(err)
		}
		b2 := append(head, b[f.DataOffset:]...)
		g, err := Parse(b2, int64(len(b2)))
		if err != nil {
			t.Fatal(err)
		}
		const want = `{
"general.architecture":{"type":"string","value":"a much longer name than before, to move the data"},
"a":{"type":"uint32","value":8},
"c":{"type":"float32","value":0.5},
"new":{"type":"array","array_type":"int32","count":2,"value":[1,-2]}
}
`
		if have := string(g.AppendMetadataJSON(nil)); have != want {
			t.Errorf("big-endian %v:\n%s\nwant\n%s", big, have, want)
		}
		if x := g.TensorAt(0); !bytes.Equal(b2[x.Offset:x.Offset+x.Bytes], spec.Tensors[0].Data) {
			t.Error("the tensor moved away from its offset")
		}
		same, err := f.Rewrite(nil)
		if err != nil || !bytes.Equal(same, b[:f.DataOffset]) {
			t.Errorf("no edit changed the header: %v", err)
		}
	}
}

func TestRewriteRefusesAlignment(t *testing.T) {
	b, err := (&Spec{KV: []SpecKV{{"a", uint8(1)}}}).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	f, err := Parse(b, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Rewrite([]KeyEdit{{"general.alignment", uint32(64)}}); err == nil {
		t.Error("the alignment was changed under the data")
	}
}

// TestParseValueReadsWhatFilesShow writes every key of a file back unchanged.
func TestParseValueReadsWhatFilesShow(t *testing.T) {
	spec := Spec{KV: []SpecKV{
		{"u8", uint8(255)}, {"i8", int8(-128)}, {"u16", uint16(65535)}, {"i16", int16(-1)}, {"u32", uint32(1 << 31)}, {"i32", int32(-5)},
		{"u64", uint64(1 << 63)}, {"i64", int64(-1 << 62)}, {"f32", float32(1e-5)}, {"f64", 0.1}, {"b", true}, {"s", "two\nlines \x00 and \xff"},
		{"as", []string{"a", "", "ü"}}, {"au8", []uint8{0, 255}}, {"af32", []float32{0.1, -2}}, {"ab", []bool{true, false}}, {"ai64", []int64{-1}}, {"au64", []uint64{1 << 63}},
	}}
	b, err := spec.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	f, err := Parse(b, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	var edits []KeyEdit
	for i := range f.KVs {
		kv := &f.KVs[i]
		v, err := ParseValue(kv.TypeName(), string(f.ValueText(kv)))
		if err != nil {
			t.Errorf("%s: %v", kv.Key, err)
		}
		edits = append(edits, KeyEdit{kv.Key, v})
	}
	same, err := f.Rewrite(edits)
	if err != nil || !bytes.Equal(same, b[:f.HeaderBytes]) {
		t.Errorf("writing back what was read changed the header: %v", err)
	}
	for _, bad := range [][2]string{{"uint8", "256"}, {"int8", "x"}, {"array[uint8]", "[256]"}, {"array[nothing]", "[]"}, {"float32", "1e60"}, {"bool", "maybe"}, {"what", "1"}, {"array[int32]", "[1"}} {
		if v, err := ParseValue(bad[0], bad[1]); err == nil {
			t.Errorf("%s %q gave %v", bad[0], bad[1], v)
		}
	}
}

func FuzzParseValue(f *testing.F) {
	f.Add("uint32", "7\n")
	f.Add("array[string]", `["a"]`)
	f.Fuzz(func(t *testing.T, typ, text string) {
		v, err := ParseValue(typ, text)
		if err != nil {
			return
		}
		if _, err := (&Spec{KV: []SpecKV{{"k", v}}}).Bytes(); err != nil {
			t.Errorf("%s %q was parsed but cannot be written: %v", typ, text, err)
		}
	})
}
