package ggufview

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

// reader hides that bytes are in memory, as a file would.
type reader struct{ View }

// readAll reads a whole view at once.
func readAll(t testing.TB, v View) []byte {
	t.Helper()
	b := make([]byte, v.Size())
	if n, err := v.ReadAt(b, 0); n != len(b) || err != nil && err != io.EOF {
		t.Fatalf("%d of %d bytes: %v", n, len(b), err)
	}
	return b
}

// checkWindows compares windows at random places, of small and large sizes and
// at every alignment, with the whole content.
func checkWindows(t testing.TB, what string, v View, want []byte, seed uint64) {
	t.Helper()
	if v.Size() != int64(len(want)) {
		t.Fatalf("%s: size %d, want %d", what, v.Size(), len(want))
	}
	rnd := rand.New(rand.NewPCG(seed, 3))
	memory := make([]byte, len(want)+16)
	for range 60 {
		off := rnd.IntN(len(want) + 1)
		n := rnd.IntN(len(want) - off + 2)
		if rnd.IntN(2) == 0 {
			n = rnd.IntN(20)
		}
		p := memory[rnd.IntN(8):][:n]
		clear(p)
		got, err := v.ReadAt(p, int64(off))
		end := min(len(want), off+n)
		if got != end-off || !bytes.Equal(p[:got], want[off:end]) {
			t.Fatalf("%s: window at %d of %d bytes differs (%d read, %v)", what, off, n, got, err)
		}
		if short := off+n > len(want) || off == len(want); short != (err == io.EOF) || !short && err != nil {
			t.Fatalf("%s: at %d of %d, %d bytes: %v", what, off, len(want), n, err)
		}
	}
}

// TestComputedWindows: each type's f32 and bf16 views, over memory and over a
// reader, in both byte orders, are windows of what Dequantize gives at once.
func TestComputedWindows(t *testing.T) {
	for i := range types {
		typ := Type(i)
		if !typ.CanDequantize() {
			continue
		}
		blocks := 3 + 40_000/typ.BlockElements() // more than a chunk
		src := randomBytes(blocks*typ.BlockBytes(), uint64(i))
		for _, bigEndian := range []bool{false, true} {
			x := make([]float32, blocks*typ.BlockElements())
			if err := Dequantize(typ, bigEndian, x, src); err != nil {
				t.Fatal(err)
			}
			f32, bf16 := make([]byte, 4*len(x)), make([]byte, 2*len(x))
			quantF32(f32, x)
			quantBF16(bf16, x)
			if typ == BF16 { // not rounded again, so NaNs stay as they are
				bf16 = bytes.Clone(src)
				if bigEndian {
					types[BF16].wide.swap(bf16, 2)
				}
			}
			for _, view := range []View{Bytes(src), reader{Bytes(src)}} {
				v, err := F32View(typ, bigEndian, view)
				if err != nil {
					t.Fatal(err)
				}
				checkWindows(t, typ.String()+" f32", v, f32, uint64(i))
				v, err = BF16View(typ, bigEndian, view)
				if err != nil {
					t.Fatal(err)
				}
				checkWindows(t, typ.String()+" bf16", v, bf16, uint64(i))
			}
		}
	}
}

func TestViewsOfNothing(t *testing.T) {
	for _, convert := range []func(Type, bool, View) (View, error){F32View, BF16View} {
		v, err := convert(Q4_K, false, Bytes(nil))
		if err != nil || v.Size() != 0 {
			t.Errorf("%v: %v", v, err)
		}
		for _, typ := range []Type{9, 15, 4, 1000} {
			if _, err := convert(typ, false, Bytes(nil)); err == nil {
				t.Errorf("%v has a view", typ)
			}
		}
		for _, typ := range []Type{Q8_0, F32, BF16} {
			if _, err := convert(typ, false, Bytes(make([]byte, 35))); err == nil {
				t.Errorf("%v: a view of a part of a block", typ)
			}
		}
	}
	if Concat().Size() != 0 {
		t.Error("an empty Concat has bytes")
	}
}

func TestConcat(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 5))
	want := randomBytes(50_000, 9)
	var parts []View
	for at := 0; at < len(want); {
		n := min(len(want)-at, rnd.IntN(12)) // some are empty
		part := Bytes(want[at : at+n])
		switch rnd.IntN(3) {
		case 0:
			part = reader{part}
		case 1:
			part = Section(Bytes(want), int64(at), int64(n))
		}
		parts = append(parts, part)
		at += n
	}
	v := Concat(append(parts, Bytes(nil))...)
	checkWindows(t, "concat", v, want, 1)
	if err := iotest.TestReader(io.NewSectionReader(v, 0, v.Size()), want); err != nil {
		t.Error(err)
	}
}

func TestSlice(t *testing.T) {
	b := randomBytes(100, 1)
	v := Concat(Bytes(b[:10]), Section(Bytes(b), 10, 60), reader{Bytes(b[70:])}).(Slicer)
	for _, c := range []struct {
		off, n int64
		ok     bool
	}{{0, 10, true}, {3, 5, true}, {12, 58, true}, {8, 4, false}, {70, 1, false}, {99, 2, false}, {-1, 2, false}, {5, -1, false}, {20, 1 << 62, false}} {
		got, ok := v.Slice(c.off, c.n)
		if ok != c.ok || ok && (&got[0] != &b[c.off] || int64(len(got)) != c.n) {
			t.Errorf("Slice(%d, %d): %d bytes, %v", c.off, c.n, len(got), ok)
		}
	}
}

func TestReadErrors(t *testing.T) {
	short := shortView{Bytes(make([]byte, 100)), 1000}
	for _, v := range []View{Section(short, 0, 1000), Concat(short), mustF32(t, Q8_0, shortView{Bytes(make([]byte, 34)), 68})} {
		n, err := v.ReadAt(make([]byte, v.Size()), 0)
		if !errors.Is(err, io.ErrUnexpectedEOF) || n == int(v.Size()) {
			t.Errorf("%T of a source that ends early: %d, %v", v, n, err)
		}
	}
	for _, v := range []View{Bytes(nil), Section(Bytes(nil), 0, 0), Concat(), mustF32(t, Q8_0, Bytes(nil))} {
		if _, err := v.ReadAt(make([]byte, 1), -1); err == nil || err == io.EOF {
			t.Errorf("%T at -1: %v", v, err)
		}
		if _, err := v.ReadAt(make([]byte, 1), 0); err != io.EOF {
			t.Errorf("%T at its end: %v", v, err)
		}
	}
}

// shortView has less than it says.
type shortView struct {
	View
	size int64
}

func (v shortView) Size() int64 { return v.size }

func mustF32(t testing.TB, typ Type, src View) View {
	t.Helper()
	v, err := F32View(typ, false, src)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// vast is a source of 2 GiB of blocks that remembers what was read of it.
type vast struct{ low, high int64 }

func (v *vast) Size() int64 { return 2 << 30 / 144 * 144 }

func (v *vast) ReadAt(p []byte, off int64) (int, error) {
	v.low, v.high = min(v.low, off), max(v.high, off+int64(len(p)))
	clear(p)
	return len(p), nil
}

// TestWindowTouchesItsBlocks: 4 KiB in the middle of a huge view cost those blocks and no memory.
func TestWindowTouchesItsBlocks(t *testing.T) {
	src := &vast{low: 1 << 62}
	v := mustF32(t, Q4_K, src)
	p := make([]byte, 4096)
	at := v.Size()/2 + 7
	read := func() {
		if _, err := v.ReadAt(p, at); err != nil {
			t.Fatal(err)
		}
	}
	read()
	if first, last := at/1024, (at+4095)/1024; src.low != first*144 || src.high != (last+1)*144 {
		t.Errorf("read %d..%d for blocks %d..%d", src.low, src.high, first, last)
	}
	if n := testing.AllocsPerRun(100, read); n > 0 && !raceEnabled() {
		t.Errorf("%g allocations a read", n)
	}
}

// raceEnabled: under the race detector a sync.Pool drops things at random.
func raceEnabled() bool {
	return testing.AllocsPerRun(100, func() { bytesPool.Put(bytesPool.Get()) }) > 0
}

func FuzzF32Window(f *testing.F) {
	f.Add(uint32(Q4_K), false, randomBytes(144*3, 1), int64(1000), 1100, 1)
	f.Add(uint32(I16), true, randomBytes(14, 1), int64(3), 9, 2)
	f.Add(uint32(Q8_0), true, randomBytes(34*2, 1), int64(-5), 0, 0)
	f.Fuzz(func(t *testing.T, id uint32, bigEndian bool, src []byte, off int64, n, shift int) {
		typ := Type(id % uint32(len(types)))
		v, err := F32View(typ, bigEndian, Bytes(src))
		if err != nil || n < 0 || n > 1<<20 {
			return
		}
		whole := readAll(t, v)
		p := make([]byte, n+8)[shift&7:][:n]
		got, err := v.ReadAt(p, off)
		if off < 0 {
			if err == nil {
				t.Fatal("read before the beginning")
			}
			return
		}
		from := min(off, v.Size())
		if to := min(v.Size()-from, int64(n)); int64(got) != to || !bytes.Equal(p[:got], whole[from:from+to]) {
			t.Fatalf("%v at %d, %d bytes: %d, %v", typ, off, n, got, err)
		}
	})
}

func BenchmarkF32View(b *testing.B) {
	for _, typ := range []Type{Q4_K, Q8_0, F16, F32} {
		for _, kind := range []string{"mapped", "reader"} {
			b.Run(typ.String()+"/"+kind, func(b *testing.B) {
				var src View = Bytes(randomBytes(1<<20/typ.BlockElements()*typ.BlockBytes(), 1))
				if kind == "reader" {
					src = reader{src}
				}
				v := mustF32(b, typ, src)
				p := make([]byte, 1<<17) // what one FUSE read asks for
				b.SetBytes(int64(len(p)))
				for i := int64(0); b.Loop(); i++ {
					if _, err := v.ReadAt(p, i%32*int64(len(p))); err != nil && err != io.EOF {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkConcat(b *testing.B) {
	parts := make([]View, 10_000)
	for i := range parts {
		parts[i] = Bytes(make([]byte, 1000))
	}
	v := Concat(parts...)
	p := make([]byte, 4096)
	for i := int64(0); b.Loop(); i++ {
		if _, err := v.ReadAt(p, i*4096%(v.Size()-4096)); err != nil {
			b.Fatal(err)
		}
	}
}
