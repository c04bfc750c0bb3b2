package ggufview

import (
	"bytes"
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// TestQuantizeGolden: testdata/quantize/x.f32 holds blocks of 256 values of many
// distributions, NAME.q what gguf-py's quantize makes of them, for the K-quants
// what ggml's quantize_row_NAME_ref makes of them.
func TestQuantizeGolden(t *testing.T) {
	x := readFloats(t, filepath.Join("testdata", "quantize", "x.f32"))
	seen := map[Type]bool{F32: true, F64: true}
	corpus(t, "testdata", "quantize/*.q", func(file string, want []byte) {
		typ := typeNamed(t, file)
		seen[typ] = true
		got := bytes.Repeat([]byte{0xa5}, len(want)) // every byte has to be written
		if err := Quantize(typ, false, got, x); err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(want); at += typ.BlockBytes() {
			if g, w := got[at:at+typ.BlockBytes()], want[at:at+typ.BlockBytes()]; !bytes.Equal(g, w) {
				t.Fatalf("%v, block %d:\n% x, want\n% x", typ, at/typ.BlockBytes(), g, w)
			}
		}
	})
	for i := range types {
		if typ := Type(i); typ.CanQuantize() && !seen[typ] {
			t.Errorf("%v has no golden vector", typ)
		}
	}
}

func TestQuantizeBigEndian(t *testing.T) {
	x := readFloats(t, filepath.Join("testdata", "quantize", "x.f32"))
	for i := range types {
		typ := Type(i)
		if !typ.CanQuantize() {
			continue
		}
		var back [2][]float32
		for i, bigEndian := range []bool{false, true} {
			q := make([]byte, len(x)/typ.BlockElements()*typ.BlockBytes())
			back[i] = make([]float32, len(x))
			if err := Quantize(typ, bigEndian, q, x); err != nil {
				t.Fatal(err)
			}
			if err := Dequantize(typ, bigEndian, back[i], q); err != nil {
				t.Fatal(err)
			}
		}
		sameBits(t, typ.String(), back[1], back[0])
		if typ == F32 || typ == F64 {
			sameBits(t, typ.String(), back[0], x)
		}
	}
}

// TestStoredHalvesStay: what a stored half says survives reading and writing.
func TestStoredHalvesStay(t *testing.T) {
	for h := range 1 << 16 {
		if nan := h&0x7c00 == 0x7c00 && h&0x3ff != 0; !nan && int(floatToHalf(halves[h])) != h {
			t.Fatalf("%04x becomes %04x", h, floatToHalf(halves[h]))
		}
		b := math.Float32frombits(uint32(h) << 16)
		if nan := b != b; !nan && int(bfloat16(b)) != h {
			t.Fatalf("bfloat16 %04x becomes %04x", h, bfloat16(b))
		}
	}
}

// TestRounding: between two neighbours the nearest, in the middle the even one.
func TestRounding(t *testing.T) {
	for h := range 0x7c00 {
		a, b := float64(halves[h]), float64(halves[h+1])
		if h == 0x7bff {
			b = 65536 // where the next half would be
		}
		middle := float32((a + b) / 2)
		below, above := math.Nextafter32(middle, 0), math.Nextafter32(middle, 1e9)
		want := [3]int{h, h + h&1, h + 1}
		for i, v := range []float32{below, middle, above} {
			if got := floatToHalf(-v); int(got) != want[i]|0x8000 {
				t.Fatalf("%g becomes %04x, want %04x", -v, got, want[i]|0x8000)
			}
		}
	}
	for _, c := range []struct {
		in       uint32
		half, bf uint16
	}{
		{0x7fc00000, 0x7e00, 0x7fc0}, {0x7f800001, 0x7c01, 0x7fc0}, {0xff800000, 0xfc00, 0xff80},
		{0x7f7fffff, 0x7c00, 0x7f80}, {0x00000001, 0, 0}, {0x3f808000, 0x3c04, 0x3f80}, {0x3f818000, 0x3c0c, 0x3f82},
	} {
		v := math.Float32frombits(c.in)
		if h, b := floatToHalf(v), bfloat16(v); h != c.half || b != c.bf {
			t.Errorf("%08x becomes %04x and %04x, want %04x and %04x", c.in, h, b, c.half, c.bf)
		}
	}
}

// TestQuantizeWildValues: values that no model should have give blocks, not panics.
func TestQuantizeWildValues(t *testing.T) {
	wild := []float32{0, float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), math.MaxFloat32, -math.MaxFloat32, 1e-45, 1}
	rnd := rand.New(rand.NewPCG(1, 2))
	x := make([]float32, 256)
	for range 200 {
		kinds := 1 + rnd.IntN(len(wild))
		for i := range x {
			x[i] = wild[rnd.IntN(kinds)]
		}
		for i := range types {
			if typ := Type(i); typ.CanQuantize() {
				if err := Quantize(typ, false, make([]byte, 256/typ.BlockElements()*typ.BlockBytes()), x); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func BenchmarkQuantize(b *testing.B) {
	x := readFloats(b, filepath.Join("testdata", "quantize", "x.f32"))
	for i := range types {
		typ := Type(i)
		if !typ.CanQuantize() {
			continue
		}
		b.Run(typ.String(), func(b *testing.B) {
			dst := make([]byte, len(x)/typ.BlockElements()*typ.BlockBytes())
			b.SetBytes(int64(4 * len(x)))
			for b.Loop() {
				if err := Quantize(typ, false, dst, x); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
