package ggufview

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"testing"
)

// stRead is a tensor's value in the JSON header.
type stRead struct {
	Dtype   string   `json:"dtype"`
	Shape   []int64  `json:"shape"`
	Offsets [2]int64 `json:"data_offsets"`
}

// parseSafetensors checks what every reader checks and returns the header and the values.
func parseSafetensors(t *testing.T, v View) (map[string]stRead, map[string]string, []byte) {
	t.Helper()
	b := readAll(t, v)
	n := binary.LittleEndian.Uint64(b)
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b[8:8+n], &raw); err != nil || n%8 != 0 || b[8] != '{' {
		t.Fatalf("header of %d bytes: %v", n, err)
	}
	var meta map[string]string
	tensors := map[string]stRead{}
	for name, text := range raw {
		var e stRead
		var err error
		if name == "__metadata__" {
			err = json.Unmarshal(text, &meta)
		} else {
			err = json.Unmarshal(text, &e)
			tensors[name] = e
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return tensors, meta, b[8+n:]
}

func TestSafetensors(t *testing.T) {
	for _, as := range []Type{F32, BF16} {
		for _, bigEndian := range []bool{false, true} {
			testSafetensors(t, as, bigEndian)
		}
	}
}

// testSafetensors has one tensor of every type.
func testSafetensors(t *testing.T, as Type, bigEndian bool) {
	var descs []TensorDesc
	var data []View
	for i := range types {
		if typ := Type(i); typ.Known() {
			descs = append(descs, TensorDesc{fmt.Sprintf("t.%v \"\n", typ), typ, []int64{2, 512}, bigEndian})
			data = append(data, Bytes(randomBytes(1024/typ.BlockElements()*typ.BlockBytes(), uint64(i))))
		}
	}
	v, err := Safetensors(map[string]string{"k": "v\x00é"}, descs, func(i int) View { return data[i] }, as)
	if err != nil {
		t.Fatal(err)
	}
	tensors, meta, body := parseSafetensors(t, v)
	if len(tensors) != len(descs) || meta["k"] != "v\x00é" {
		t.Errorf("%d tensors, metadata %q", len(tensors), meta)
	}
	var off int64
	for i, d := range descs {
		e := tensors[d.Name]
		wantType, wantShape, want := expectSafetensor(t, d, data[i], as)
		if e.Dtype != wantType || fmt.Sprint(e.Shape) != fmt.Sprint(wantShape) || e.Offsets != [2]int64{off, off + want.Size()} {
			t.Errorf("%v as %v: %+v, want %s %v at %d", d.Type, as, e, wantType, wantShape, off)
		}
		off = e.Offsets[1]
		if !bytes.Equal(body[e.Offsets[0]:off], readAll(t, want)) {
			t.Errorf("%v as %v: values differ", d.Type, as)
		}
	}
	if off != int64(len(body)) {
		t.Errorf("%d bytes of values, want %d", len(body), off)
	}
	checkWindows(t, "safetensors", v, readAll(t, v), 1)
	size, err := SafetensorsSize(map[string]string{"k": "v\x00é"}, len(descs), func(i int) TensorDesc { return descs[i] }, as)
	if err != nil || size != v.Size() {
		t.Errorf("size %d, want %d: %v", size, v.Size(), err)
	}
}

func expectSafetensor(t *testing.T, d TensorDesc, raw View, as Type) (dtype string, shape []int64, v View) {
	t.Helper()
	var err error
	switch native, ok := safetensorsTypes[d.Type]; {
	case ok:
		b := bytes.Clone(readAll(t, raw))
		if d.BigEndian {
			types[d.Type].wide.swap(b, d.Type.BlockBytes())
		}
		return native, d.Shape, Bytes(b)
	case d.Type == 9 || d.Type == 15:
		return "U8", []int64{2, raw.Size() / 2}, raw
	case as == BF16:
		v, err = BF16View(d.Type, d.BigEndian, raw)
	default:
		v, err = F32View(d.Type, d.BigEndian, raw)
	}
	if err != nil {
		t.Fatal(err)
	}
	return as.String(), d.Shape, v
}

func TestSafetensorsSmall(t *testing.T) {
	v, err := Safetensors(nil, nil, nil, F32)
	if err != nil || string(readAll(t, v)) != "\x08\x00\x00\x00\x00\x00\x00\x00{}      " {
		t.Errorf("no tensors: %v", err)
	}
	descs := []TensorDesc{{"", F16, nil, false}, {"\xff", F32, []int64{0, 3}, true}}
	data := []View{Bytes([]byte{1, 2}), Bytes(nil)}
	v, err = Safetensors(nil, descs, func(i int) View { return data[i] }, F32)
	if err != nil {
		t.Fatal(err)
	}
	tensors, _, body := parseSafetensors(t, v)
	if len(tensors) != 2 || tensors[""].Shape == nil || tensors["\ufffd"].Dtype != "F32" || len(body) != 2 {
		t.Errorf("%v", tensors)
	}
}

func TestSafetensorsErrors(t *testing.T) {
	eight := func(int) View { return Bytes(make([]byte, 8)) }
	two := func(a, b string) []TensorDesc {
		return []TensorDesc{{a, F64, nil, false}, {b, F64, nil, false}}
	}
	for _, descs := range [][]TensorDesc{two("a", "a"), two("\xfe", "\xff"), two("a", "__metadata__")} {
		if _, err := Safetensors(nil, descs, eight, F32); err == nil {
			t.Errorf("names %q and %q", descs[0].Name, descs[1].Name)
		}
	}
	for _, d := range impossible {
		if _, err := Safetensors(nil, []TensorDesc{d}, eight, F32); err == nil {
			t.Error(d.Name)
		}
	}
	if _, err := Safetensors(nil, nil, eight, Q4_K); err == nil {
		t.Error("quantised tensors as Q4_K")
	}
}
