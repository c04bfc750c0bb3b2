package ggufview

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// Fuzz targets for what this package writes: it is read back.

// fuzzDescs makes tensors of bytes: a name, a type and a shape each.
func fuzzDescs(names string, kinds []byte) (descs []TensorDesc, data []View) {
	for i, name := range strings.Split(names, ",") {
		if i >= len(kinds) {
			break
		}
		typ := Type(kinds[i]) % Type(len(types))
		if !typ.Known() {
			typ = I8
		}
		rows := int64(kinds[i] >> 5)
		d := TensorDesc{Name: name, Type: typ, Shape: []int64{rows, int64(typ.BlockElements())}, BigEndian: kinds[i]&16 != 0}
		descs = append(descs, d)
		data = append(data, Bytes(randomBytes(int(rows)*typ.BlockBytes(), uint64(i))))
	}
	return descs, data
}

// FuzzSafetensors: what is written any JSON reader reads, tensor after tensor
// without a hole; it is refused only when two names look the same.
func FuzzSafetensors(f *testing.F) {
	f.Add("a,b,\xff", []byte{0, 40, 77}, "key", "value\x00\"")
	f.Add("\xff,\xfe", []byte{1, 2}, "", "")
	f.Fuzz(func(t *testing.T, names string, kinds []byte, key, value string) {
		descs, data := fuzzDescs(names, kinds)
		shown := map[string]bool{"__metadata__": true}
		for _, d := range descs {
			shown[strings.ToValidUTF8(d.Name, "\ufffd")] = true
		}
		v, err := Safetensors(map[string]string{key: value}, descs, func(i int) View { return data[i] }, F32)
		if unique := len(shown) == len(descs)+1; (err == nil) != unique {
			t.Fatalf("%d names for %d tensors: %v", len(shown), len(descs), err)
		}
		size, sizeErr := SafetensorsSize(map[string]string{key: value}, len(descs), func(i int) TensorDesc { return descs[i] }, F32)
		if (sizeErr == nil) != (err == nil) || err == nil && size != v.Size() {
			t.Fatalf("size %d, %v", size, sizeErr)
		}
		if err != nil {
			return
		}
		tensors, meta, body := parseSafetensors(t, v)
		if utf8.ValidString(key) && utf8.ValidString(value) && meta[key] != value {
			t.Errorf("metadata: %q", meta)
		}
		var end int64
		for i, d := range descs {
			e := tensors[strings.ToValidUTF8(d.Name, "\ufffd")]
			if e.Offsets[0] != end || len(e.Shape) != 2 || e.Shape[0] != d.Shape[0] {
				t.Errorf("tensor %d: %+v, the one before ends at %d", i, e, end)
			}
			end = e.Offsets[1]
		}
		if end != int64(len(body)) {
			t.Errorf("%d bytes of %d are tensors", end, len(body))
		}
	})
}

// FuzzNpy: the header is what NumPy's reader takes, and its length a multiple of 64.
func FuzzNpy(f *testing.F) {
	f.Add("a,b", []byte{0, 200})
	f.Fuzz(func(t *testing.T, names string, kinds []byte) {
		descs, data := fuzzDescs(names, kinds)
		for i, d := range descs {
			raw, err := RawNpy(d, data[i])
			if err != nil {
				t.Fatal(err)
			}
			if _, _, body := parseNpy(t, raw); !bytes.Equal(body, readAll(t, data[i])) {
				t.Errorf("%v: other bytes", d.Type)
			}
			if f32, err := F32Npy(d, data[i]); err == nil {
				_, _, body := parseNpy(t, f32)
				if want := int(d.Shape[0]*d.Shape[1]) * 4; len(body) != want {
					t.Errorf("%v: %d bytes of values, want %d", d.Type, len(body), want)
				}
			} else if d.Type.CanDequantize() {
				t.Errorf("%v: %v", d.Type, err)
			}
		}
	})
}

// FuzzQuantize: values go through a type and back without a panic, and none comes
// back further away than the largest of them.
func FuzzQuantize(f *testing.F) {
	f.Add(uint8(Q4_0), []byte{1, 2, 3, 4})
	f.Add(uint8(Q6_K), bytes.Repeat([]byte{0, 0, 0x80, 0x3f}, 9))
	f.Fuzz(func(t *testing.T, id uint8, seed []byte) {
		typ := Type(id) % Type(len(types))
		if !typ.CanQuantize() || len(seed) < 4 {
			return
		}
		in := make([]float32, max(typ.BlockElements(), 32))
		var most float64
		for i := range in {
			v := math.Float32frombits(le.Uint32(slices.Concat(seed, seed)[4*i%len(seed):]))
			if m := math.Abs(float64(v)); m >= 0x1p-10 && m <= 0x1p10 {
				in[i], most = v, max(most, m)
			}
		}
		stored := make([]byte, len(in)/typ.BlockElements()*typ.BlockBytes())
		out := make([]float32, len(in))
		if err := Quantize(typ, false, stored, in); err != nil {
			t.Fatal(err)
		}
		if err := Dequantize(typ, false, out, stored); err != nil {
			t.Fatal(err)
		}
		for i, v := range out {
			if d := math.Abs(float64(v) - float64(in[i])); !(d <= 1.01*most) {
				t.Fatalf("%v: %g became %g, the largest is %g", typ, in[i], v, most)
			}
		}
	})
}

// FuzzRewrite: after an edit the file parses, the key has the value, and no other
// key and no tensor changed.
func FuzzRewrite(f *testing.F) {
	f.Add(uint8(0), "general.name", "string", "x", false)
	f.Add(uint8(3), "new", "array[float32]", "[1,2.5]", true)
	f.Add(uint8(7), "i", "int8", "-5", false)
	f.Fuzz(func(t *testing.T, n uint8, key, typ, text string, remove bool) {
		old := mustParse(t, mustBytes(t, sample(n&1 == 1)))
		value, err := ParseValue(typ, text)
		if err != nil {
			return
		}
		edits := []KeyEdit{{key, value}}
		if remove {
			edits = append(edits, KeyEdit{Key: old.KVs[int(n)%len(old.KVs)].Key})
		}
		head, err := old.Rewrite(edits)
		if err != nil {
			return
		}
		changed := mustParseHead(t, head, old.Size+int64(len(head)))
		want, err := FormatValue(value)
		kv, ok := changed.Find(key)
		if gone := remove && edits[1].Key == key; err != nil || ok == gone || !gone && string(changed.ValueText(kv)) != string(want) {
			t.Fatalf("%q: %v, %v", key, ok, err)
		}
		for i := range old.KVs {
			was := &old.KVs[i]
			now, ok := changed.Find(was.Key)
			if was.Key != key && !(remove && was.Key == edits[1].Key) && (!ok || !bytes.Equal(changed.ValueText(now), old.ValueText(was))) {
				t.Errorf("%q changed", was.Key)
			}
		}
		for i, was := range old.Tensors() {
			now := changed.TensorAt(i)
			if now.Offset -= changed.DataOffset - old.DataOffset; now != was {
				t.Errorf("%+v, was %+v", now, was)
			}
		}
	})
}

func mustParseHead(t *testing.T, head []byte, size int64) *File {
	t.Helper()
	f, err := Parse(head, size)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// FuzzMerge: however tensors are spread over shards, the whole has all of them,
// each with its bytes.
func FuzzMerge(f *testing.F) {
	f.Add([]byte{3, 1, 200, 0, 64}, uint8(2), uint8(4), false)
	f.Fuzz(func(t *testing.T, sizes []byte, a, b uint8, big bool) {
		sizes = sizes[:min(len(sizes), 60)]
		var all []SpecTensor
		for i, n := range sizes {
			all = append(all, i8(string(rune('A'+i)), int(n)))
		}
		cut := []int{int(a) % (len(all) + 1), int(b) % (len(all) + 1)}
		slices.Sort(cut)
		shards := []*Spec{shard(0, 3, len(all), all[:cut[0]]...), shard(1, 3, len(all), all[cut[0]:cut[1]]...), shard(2, 3, len(all), all[cut[1]:]...)}
		for _, s := range shards {
			s.BigEndian = big
		}
		whole, got, err := merge(t, shards...)
		if err != nil {
			t.Fatal(err)
		}
		again := mustParseHead(t, got, int64(len(got)))
		if again.NumTensors() != len(all) || whole.Size != int64(len(got)) {
			t.Fatalf("%d tensors of %d, %d bytes of %d", again.NumTensors(), len(all), whole.Size, len(got))
		}
		for i, x := range again.Tensors() {
			if x != whole.TensorAt(i) || !bytes.Equal(got[x.Offset:x.Offset+x.Bytes], all[i].Data) {
				t.Errorf("tensor %d is %+v", i, x)
			}
		}
	})
}
