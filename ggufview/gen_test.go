package ggufview

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
)

func generate(t testing.TB, g Gen) []byte {
	t.Helper()
	var buf bytes.Buffer
	n, err := g.WriteTo(&buf)
	if err != nil || n != int64(buf.Len()) {
		t.Fatalf("%d bytes, said %d: %v", buf.Len(), n, err)
	}
	return buf.Bytes()
}

func TestGenSize(t *testing.T) {
	for typ := range genScales {
		const want = 16 << 20
		b := generate(t, Gen{Bytes: want, Type: typ})
		f := mustParse(t, b)
		if n := len(b); n < want*3/4 || n > want*5/4 {
			t.Errorf("%v: %d bytes, want about %d", typ, n, want)
		}
		if f.NumTensors() != 21 || f.TensorAt(0).Type != typ || f.Architecture() != "llama" {
			t.Errorf("%v: %d tensors, the first %+v", typ, f.NumTensors(), f.TensorAt(0))
		}
	}
}

// TestGenFinite reads the scales and plain values as ggml would.
func TestGenFinite(t *testing.T) {
	for typ, scales := range genScales {
		b := generate(t, Gen{Bytes: 1 << 20, Type: typ})
		m := mustParse(t, b).TensorAt(0)
		data := b[m.Offset : m.Offset+m.Bytes]
		for i := 0; i < len(data); i += typ.BlockBytes() {
			for _, at := range scales {
				if bits := binary.LittleEndian.Uint16(data[i+at:]); bits&0x7c00 != 0x0c00 {
					t.Fatalf("%v: scale %#x in block %d", typ, bits, i)
				}
			}
			switch typ {
			case F32:
				checkWeight(t, typ, binary.LittleEndian.Uint32(data[i:]))
			case BF16:
				checkWeight(t, typ, uint32(binary.LittleEndian.Uint16(data[i:]))<<16)
			case F16:
				if e := binary.LittleEndian.Uint16(data[i:]) >> 10 & 31; e != 8 && e != 9 {
					t.Fatalf("F16 exponent %d", e)
				}
			}
		}
	}
}

func checkWeight(t *testing.T, typ Type, bits uint32) {
	if x := math.Abs(float64(math.Float32frombits(bits))); x < 0.001 || x > 0.1 {
		t.Fatalf("%v: weight %v", typ, x)
	}
}

func TestGenIsDeterministic(t *testing.T) {
	g := Gen{Bytes: 4 << 20, Type: F16}
	a, b := generate(t, g), generate(t, g)
	g.Seed = 1
	c := generate(t, g)
	if sha256.Sum256(a) != sha256.Sum256(b) || bytes.Equal(a[len(a)/2:], c[len(c)/2:]) {
		t.Error("not a function of the seed")
	}
	f := mustParse(t, a)
	q, k := f.TensorAt(4), f.TensorAt(5)
	if bytes.Equal(a[q.Offset:q.Offset+q.Bytes], a[k.Offset:k.Offset+k.Bytes]) {
		t.Errorf("%s and %s are equal", q.Name, k.Name)
	}
}

func TestGenShapes(t *testing.T) {
	header := generate(t, Gen{Tokens: 150_000})
	f := mustParse(t, header)
	tokens, _ := f.Find("tokenizer.ggml.tokens")
	seen := map[string]bool{}
	for _, s := range f.Strings(tokens) {
		seen[string(s)] = true
	}
	if f.NumTensors() != 0 || tokens.Count != 150_000 || len(seen) != 150_000 {
		t.Errorf("%d tensors, %d tokens, %d different", f.NumTensors(), tokens.Count, len(seen))
	}
	for _, n := range []int{1, 3, 4, 291, 10_000} {
		if f := mustParse(t, generate(t, Gen{Tensors: n})); f.NumTensors() != n {
			t.Errorf("%d tensors, want %d", f.NumTensors(), n)
		}
	}
	if _, err := (Gen{Bytes: 1 << 20, Type: MXFP4}).WriteTo(io.Discard); err == nil {
		t.Error("MXFP4 is not supported but did not fail")
	}
}

// TestGenGiB checks the layout of a model that is too big for a test's memory.
func TestGenGiB(t *testing.T) {
	const size = 1 << 30
	var head prefix
	if _, err := (Gen{Bytes: size, Type: F16}).WriteTo(&head); !errors.Is(err, errEnough) {
		t.Fatal(err)
	}
	f, err := Parse(head, math.MaxInt64)
	if err != nil {
		t.Fatal(err)
	}
	last := f.TensorAt(f.NumTensors() - 1)
	if end := last.Offset + last.Bytes; end < size*97/100 || end > size*101/100 || f.NumTensors() != 291 {
		t.Errorf("%d bytes, %d tensors", end, f.NumTensors())
	}
}

var errEnough = errors.New("enough")

// prefix keeps the first write, which is the header.
type prefix []byte

func (p *prefix) Write(b []byte) (int, error) {
	if len(*p) > 0 {
		return 0, errEnough
	}
	*p = slices.Clone(b)
	return len(b), nil
}

func TestSpecRefuses(t *testing.T) {
	for want, s := range map[string]Spec{
		"no type for a int":    {KV: []SpecKV{{"k", 1}}},
		"no type for a <nil>":  {KV: []SpecKV{{"k", nil}}},
		"no type for a []int":  {KV: []SpecKV{{"k", []int{1}}}},
		"no element type":      {KV: []SpecKV{{"k", []any{}}}},
		"5 dimensions":         {Tensors: []SpecTensor{{NE: make([]int64, 5)}}},
		"dimensions of type 4": {Tensors: []SpecTensor{{Type: 4}}},
		"not whole blocks":     {Tensors: []SpecTensor{{Type: Q8_0, NE: []int64{1}}}},
		"1 bytes of data":      {Tensors: []SpecTensor{{Type: F32, NE: []int64{1}, Data: []byte{1}}}},
	} {
		if _, err := s.Bytes(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := (&Spec{}).WriteTo(&prefix{1}); !errors.Is(err, errEnough) {
		t.Errorf("the writer's error: %v", err)
	}
}

func TestSpecAlignmentVersionAndFill(t *testing.T) {
	fill := func(p []byte, off int64) {
		for i := range p {
			p[i] = byte((off + int64(i)) / 18)
		}
	}
	b := mustBytes(t, Spec{
		Version: 2, KV: []SpecKV{{"general.alignment", uint32(4096)}},
		Tensors: []SpecTensor{{Name: "w", Type: Q4_0, NE: []int64{32, 70_000}, Fill: fill}, {Name: "v", Type: I8}},
	})
	f := mustParse(t, b)
	w := f.TensorAt(0)
	if f.Version != 2 || f.Alignment != 4096 || f.DataOffset%4096 != 0 || len(b)%4096 != 0 {
		t.Errorf("%+v", f)
	}
	for i, c := range b[w.Offset : w.Offset+w.Bytes] {
		if c != byte(i/18) {
			t.Fatalf("byte %d is %d", i, c)
		}
	}
}
