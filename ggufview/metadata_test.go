package ggufview

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
)

func TestValueJSON(t *testing.T) {
	want := map[string]string{
		"general.architecture": `"llama"`,
		"u8":                   "200", "i8": "-2", "u16": "60000", "i16": "-3", "u32": "4000000000", "i32": "-4",
		"u64": "18446744073709551615", "i64": "-9223372036854775808",
		"f32": "0.10000000149011612", "f64": "0.1", "yes": "true", "no": "false",
		"text": `"a\"b\\c\nd\u0000` + "\ufffdé\"", "empty": `""`,
		"strings": `["x","","y\tz"]`, "none": "[]", "floats": `[1,"NaN","-Infinity",1.0000000200408773e+20]`,
		"bools": "[true,false]", "i16s": "[-1,1]", "any": "[1,2]",
	}
	for _, big := range []bool{false, true} {
		f := mustParse(t, mustBytes(t, sample(big)))
		for key, w := range want {
			kv, ok := f.Find(key)
			if !ok {
				t.Errorf("no key %s", key)
				continue
			}
			if got := string(f.AppendValueJSON([]byte("x"), kv)); got != "x"+w {
				t.Errorf("%s: %s, want %s", key, got, w)
			}
		}
	}
}

func TestValueText(t *testing.T) {
	f := mustParse(t, mustBytes(t, Spec{KV: []SpecKV{
		{"s", "no newline"}, {"b", true}, {"n", int64(-7)}, {"inf", math.Inf(1)}, {"a", []uint8{1, 2}}, {"e", ""},
	}}))
	for key, want := range map[string]string{
		"s": "no newline", "b": "true\n", "n": "-7\n", "inf": "Infinity\n", "a": "[1,2]\n", "e": "",
	} {
		kv, _ := f.Find(key)
		if got := string(f.ValueText(kv)); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
}

func TestTypedValues(t *testing.T) {
	f := mustParse(t, mustBytes(t, sample(true)))
	for key, want := range map[string]uint64{"u8": 200, "u16": 60000, "u32": 4e9, "u64": math.MaxUint64} {
		if v, ok := f.Uint(key); !ok || v != want {
			t.Errorf("%s: %d, %v", key, v, ok)
		}
	}
	for _, key := range []string{"i8", "i64", "text", "strings", "f32", "yes", "nosuch"} {
		if v, ok := f.Uint(key); ok {
			t.Errorf("%s is an unsigned %d", key, v)
		}
	}
	if v, ok := f.Float("f32"); !ok || v != float64(float32(0.1)) {
		t.Errorf("f32: %v, %v", v, ok)
	}
	for _, key := range []string{"u8", "text", "nosuch"} {
		if v, ok := f.Float(key); ok {
			t.Errorf("%s is a float %v", key, v)
		}
	}
	if s, ok := f.Str("text"); !ok || s != "a\"b\\c\nd\x00\xffé" {
		t.Errorf("text: %q, %v", s, ok)
	}
	if _, ok := f.Str("u8"); ok || f.Architecture() != "llama" {
		t.Errorf("architecture %q", f.Architecture())
	}
}

func TestStrings(t *testing.T) {
	f := mustParse(t, mustBytes(t, sample(false)))
	for key, want := range map[string][]string{"strings": {"x", "", "y\tz"}, "none": nil, "empty": {""}, "floats": nil} {
		kv, _ := f.Find(key)
		var got []string
		for i, s := range f.Strings(kv) {
			if i != int64(len(got)) {
				t.Errorf("%s: index %d", key, i)
			}
			got = append(got, string(s))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	kv, _ := f.Find("strings")
	for range f.Strings(kv) {
		break
	}
}

func TestMetadataJSON(t *testing.T) {
	f := mustParse(t, mustBytes(t, Spec{KV: []SpecKV{{"general.architecture", "llama"}, {"a\n", []string{"x", "y"}}}}))
	want := `{
"general.architecture":{"type":"string","value":"llama"},
"a\n":{"type":"array","array_type":"string","count":2,"value":["x","y"]}
}
`
	if got := string(f.AppendMetadataJSON(nil)); got != want {
		t.Errorf("got %s", got)
	}
	empty := mustParse(t, mustBytes(t, Spec{}))
	if got := string(empty.AppendMetadataJSON(nil)); got != "{\n}\n" {
		t.Errorf("empty: %q", got)
	}
}

func TestTensorsJSON(t *testing.T) {
	f := mustParse(t, mustBytes(t, sample(true)))
	want := `{"name":"a.weight","type":"F32","type_id":0,"shape":[3,2],"ne":[2,3],"offset":832,"nbytes":24,` +
		`"elements":6,"block_elements":1,"block_bytes":4,"numpy_dtype":">f4"},`
	lines := strings.Split(string(f.AppendTensorsJSON(nil)), "\n")
	if lines[0] != "[" || lines[1] != want || lines[len(lines)-1] != "]" {
		t.Errorf("got %q", lines)
	}
	var rows []struct {
		Name  string
		Shape []int64
		Dtype *string `json:"numpy_dtype"`
	}
	if err := json.Unmarshal(f.AppendTensorsJSON(nil), &rows); err != nil || len(rows) != 5 {
		t.Fatal(err, rows)
	}
	if rows[1].Dtype != nil || *rows[2].Dtype != "|i1" || rows[4].Dtype != nil || len(rows[2].Shape) != 0 {
		t.Errorf("%+v", rows)
	}
	little := mustParse(t, mustBytes(t, sample(false)))
	if !strings.Contains(string(little.AppendTensorsJSON(nil)), `"<f2"`) {
		t.Error("no <f2 in the little-endian layout")
	}
}

func TestLayoutTSV(t *testing.T) {
	f := mustParse(t, mustBytes(t, Spec{Tensors: []SpecTensor{
		{Name: "a\tb\nc\\d", Type: F16, NE: []int64{3, 2}}, {Name: "s", Type: I8},
	}}))
	want := "name\ttype\tshape\toffset\tnbytes\n" + `a\tb\nc\\d` + "\tF16\t2x3\t96\t12\ns\tI8\t\t128\t1\n"
	if got := string(f.AppendLayoutTSV(nil)); got != want {
		t.Errorf("got %q", got)
	}
}

func TestValueTypeNames(t *testing.T) {
	if ValueFloat64.String() != "float64" || ValueType(13).String() != "value type 13" || ValueType(13).Known() {
		t.Error(ValueFloat64, ValueType(13))
	}
}
