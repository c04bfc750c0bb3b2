package ggufview

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// typeNamed finds a type by a file name like "q4_K.rnd.q".
func typeNamed(t testing.TB, file string) Type {
	t.Helper()
	name, _, _ := strings.Cut(file, ".")
	for i := range types {
		if strings.EqualFold(types[i].name, name) {
			return Type(i)
		}
	}
	t.Fatalf("no type for %s", file)
	return 0
}

// readFloats reads a file of little-endian float32 values.
func readFloats(t testing.TB, path string) []float32 {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	x := make([]float32, len(b)/4)
	for i := range x {
		x[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return x
}

// sameBits fails at the first value that differs in a bit.
func sameBits(t testing.TB, what string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	for i := range want {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Fatalf("%s: value %d is %x (%g), want %x (%g)", what, i,
				math.Float32bits(got[i]), got[i], math.Float32bits(want[i]), want[i])
		}
	}
}

// golden calls do with every golden vector: NAME.q holds blocks of type NAME
// and NAME.f32 what ggml's dequantize_row_NAME makes of them.
func golden(t testing.TB, do func(file string, typ Type, q []byte, want []float32)) {
	for _, dir := range []string{"testdata", sharedData(t)} {
		corpus(t, dir, "dequant/*.q", func(file string, q []byte) {
			f32 := strings.TrimSuffix(file, ".q") + ".f32"
			do(file, typeNamed(t, file), q, readFloats(t, filepath.Join(dir, "dequant", f32)))
		})
	}
}

func TestDequantizeGolden(t *testing.T) {
	seen := map[Type]bool{}
	golden(t, func(file string, typ Type, q []byte, want []float32) {
		seen[typ] = true
		got := make([]float32, len(want))
		if err := Dequantize(typ, false, got, q); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		sameBits(t, file, got, want)
	})
	for i := range types {
		if typ := Type(i); typ.CanDequantize() && types[i].block > 1 && !seen[typ] {
			t.Errorf("%v has no golden vector", typ)
		}
	}
}

// swapByHand is the rule for big-endian blocks written a second time: the
// offset and width of every field that is wider than a byte.
var swapByHand = map[Type][][2]int{
	F16: {{0, 2}}, BF16: {{0, 2}}, 41: {{0, 2}}, 42: {{0, 2}}, Q4_0: {{0, 2}}, Q8_0: {{0, 2}},
	Q4_1: {{0, 2}, {2, 2}}, Q5_0: {{0, 2}, {2, 4}}, Q5_1: {{0, 2}, {2, 2}, {4, 4}},
	Q2_K: {{80, 2}, {82, 2}}, Q3_K: {{108, 2}}, Q4_K: {{0, 2}, {2, 2}}, Q5_K: {{0, 2}, {2, 2}}, Q6_K: {{208, 2}},
	MXFP4: {},
}

func TestDequantizeBigEndian(t *testing.T) {
	golden(t, func(file string, typ Type, q []byte, want []float32) {
		big := bytes.Clone(q)
		if fields, ok := swapByHand[typ]; ok {
			for at := 0; at < len(big); at += typ.BlockBytes() {
				for _, f := range fields {
					field := big[at+f[0]:][:f[1]]
					for i := range f[1] / 2 {
						field[i], field[f[1]-1-i] = field[f[1]-1-i], field[i]
					}
				}
			}
		} else {
			types[typ].wide.swap(big, typ.BlockBytes())
		}
		got := make([]float32, len(want))
		if err := Dequantize(typ, true, got, big); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		sameBits(t, file+" big-endian", got, want)
	})
}

// TestWideFields: fields lie in their block, apart from each other, and swapping twice changes nothing.
func TestWideFields(t *testing.T) {
	for i := range types {
		info, taken := &types[i], map[int]bool{}
		for _, f := range info.wide {
			for b := f.off; b < f.off+f.width*f.n; b++ {
				if taken[b] || b >= info.bytes {
					t.Errorf("%v: byte %d of %d twice or outside", Type(i), b, info.bytes)
				}
				taken[b] = true
			}
		}
		b := randomBytes(3*info.bytes, uint64(i))
		twice := bytes.Clone(b)
		info.wide.swap(twice, max(1, info.bytes))
		if info.wide != nil && bytes.Equal(b, twice) {
			t.Errorf("%v: swapping changes nothing", Type(i))
		}
		info.wide.swap(twice, max(1, info.bytes))
		if !bytes.Equal(b, twice) {
			t.Errorf("%v: swapping twice changes something", Type(i))
		}
	}
}

func randomBytes(n int, seed uint64) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

func TestHalves(t *testing.T) {
	for h := range 1 << 16 {
		exponent, mantissa := h>>10&31, h&1023
		want := math.Ldexp(float64(1024+mantissa), exponent-25)
		switch {
		case exponent == 0:
			want = math.Ldexp(float64(mantissa), -24)
		case exponent == 31 && mantissa == 0:
			want = math.Inf(1)
		case exponent == 31:
			want = math.NaN()
		}
		if h >= 1<<15 {
			want = -want
		}
		got := float64(halves[h])
		if got != want && !(got != got && want != want) || math.Signbit(got) != (h >= 1<<15) {
			t.Fatalf("%04x is %g, want %g", h, got, want)
		}
	}
}

func TestPlainTypes(t *testing.T) {
	i64 := int64(-1<<62 - 1)
	for _, c := range []struct {
		t    Type
		in   []byte // little-endian
		want float32
	}{
		{F32, le.AppendUint32(nil, math.Float32bits(-1.5)), -1.5},
		{F64, le.AppendUint64(nil, math.Float64bits(math.Pi)), float32(math.Pi)},
		{F64, le.AppendUint64(nil, math.Float64bits(1e300)), float32(math.Inf(1))},
		{F16, []byte{0x01, 0x80}, -0x1p-24},
		{BF16, []byte{0xc0, 0x3f}, 1.5},
		{I8, []byte{0x80}, -128},
		{I16, []byte{0x00, 0x80}, -32768},
		{I32, le.AppendUint32(nil, 1<<24+1), 1 << 24},
		{I64, le.AppendUint64(nil, uint64(i64)), -0x1p62},
	} {
		got := make([]float32, 9) // runs that are not a multiple of any unrolling
		big := bytes.Clone(c.in)
		for i, b := range c.in {
			big[len(big)-1-i] = b
		}
		for _, in := range [][]byte{c.in, big} {
			bigEndian := &in[0] == &big[0]
			if err := Dequantize(c.t, bigEndian, got, bytes.Repeat(in, len(got))); err != nil {
				t.Fatal(err)
			}
			for _, v := range got {
				if v != c.want {
					t.Errorf("%v, big-endian %v: %g, want %g", c.t, bigEndian, v, c.want)
				}
			}
		}
	}
}

func TestConvertErrors(t *testing.T) {
	for id := Type(0); id < 300; id++ {
		if !id.CanDequantize() {
			if Dequantize(id, false, nil, nil) == nil {
				t.Errorf("%v: dequantised", id)
			}
		} else if err := Dequantize(id, true, nil, nil); err != nil {
			t.Errorf("%v: %v for nothing", id, err)
		}
		if !id.CanQuantize() {
			if Quantize(id, false, nil, nil) == nil {
				t.Errorf("%v: quantised", id)
			}
		}
		if !id.Known() {
			continue
		}
		block, size := id.BlockElements(), id.BlockBytes()
		for _, n := range [][2]int{{block, size - 1}, {block - 1, size}, {2 * block, size}, {block, 2 * size}, {0, size}, {block, 0}} {
			if Dequantize(id, false, make([]float32, n[0]), make([]byte, n[1])) == nil {
				t.Errorf("%v: %d values of %d bytes", id, n[0], n[1])
			}
			if Quantize(id, false, make([]byte, n[1]), make([]float32, n[0])) == nil {
				t.Errorf("%v: %d bytes of %d values", id, n[1], n[0])
			}
		}
	}
}

func TestNumpyDtype(t *testing.T) {
	for _, c := range []struct {
		t           Type
		little, big string
	}{{F32, "<f4", ">f4"}, {I8, "|i1", "|i1"}, {I64, "<i8", ">i8"}, {BF16, "", ""}, {Q4_K, "", ""}, {99, "", ""}} {
		if l, b := c.t.NumpyDtype(false), c.t.NumpyDtype(true); l != c.little || b != c.big {
			t.Errorf("%v: %q %q, want %q %q", c.t, l, b, c.little, c.big)
		}
	}
}

// FuzzDequantize: any bytes of any type convert without a panic, and so does what
// comes out of it on the way back.
func FuzzDequantize(f *testing.F) {
	golden(f, func(_ string, typ Type, q []byte, _ []float32) { f.Add(uint32(typ), false, q[:typ.BlockBytes()]) })
	f.Add(uint32(999), true, []byte{1})
	f.Fuzz(func(t *testing.T, id uint32, bigEndian bool, src []byte) {
		typ := Type(id)
		if !typ.Known() {
			typ = Type(id % uint32(len(types)))
		}
		if !typ.Known() {
			return
		}
		dst := make([]float32, len(src)/typ.BlockBytes()*typ.BlockElements())
		err := Dequantize(typ, bigEndian, dst, src)
		if whole := len(src)%typ.BlockBytes() == 0; (err == nil) != (whole && typ.CanDequantize()) {
			t.Fatalf("%v, %d bytes: %v", typ, len(src), err)
		}
		if err != nil || !typ.CanQuantize() {
			return
		}
		if err := Quantize(typ, bigEndian, make([]byte, len(src)), dst); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkDequantize(b *testing.B) {
	for id := range types {
		typ := Type(id)
		if !typ.CanDequantize() {
			continue
		}
		b.Run(typ.String(), func(b *testing.B) {
			dst := make([]float32, 1<<16)
			src := randomBytes(len(dst)/typ.BlockElements()*typ.BlockBytes(), 1)
			b.SetBytes(int64(4 * len(dst)))
			for b.Loop() {
				if err := Dequantize(typ, false, dst, src); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
