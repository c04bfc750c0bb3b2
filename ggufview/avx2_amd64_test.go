package ggufview

import (
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"testing"
)

// oddHalves are halves that conversions treat differently: zeros, the smallest
// and largest of each kind, infinities, quiet and signalling NaNs with payloads.
var oddHalves = []uint16{0, 0x8000, 1, 0x8001, 0x3ff, 0x83ff, 0x400, 0x8400, 0x7bff, 0xfbff,
	0x7c00, 0xfc00, 0x7c01, 0xfc01, 0x7dff, 0xfdaa, 0x7e00, 0xfe00, 0x7fff, 0xffff, 0x3c00, 0xbc00}

// oddBlocks are random blocks of which half have odd scales, each in the company of each.
func oddBlocks(t Type, blocks int, seed uint64) []byte {
	rnd, size := rand.New(rand.NewPCG(seed, 7)), t.BlockBytes()
	b := randomBytes(blocks*size, seed)
	for i := range blocks / 2 {
		block := b[2*i*size:][:size]
		for _, f := range types[t].wide {
			for n := 0; n < f.n && f.width == 2; n++ {
				le.PutUint16(block[f.off+2*n:], oddHalves[rnd.IntN(len(oddHalves))])
			}
		}
	}
	return b
}

func sameAsPlain(t testing.TB, typ Type, src []byte) {
	t.Helper()
	n := len(src) / typ.BlockBytes() * typ.BlockElements()
	const guard = 0x7fc0dead // what stands behind the values must stay
	got, want := make([]float32, n+8), make([]float32, n)
	for i := range got {
		got[i] = math.Float32frombits(guard)
	}
	fast[typ](got[:n], src)
	types[typ].dequant(want, src)
	sameBits(t, typ.String(), got[:n], want)
	for _, v := range got[n:] {
		if math.Float32bits(v) != guard {
			t.Fatalf("%v: written behind the end", typ)
		}
	}
}

// TestKernels: bit for bit the plain functions, for any number of blocks.
func TestKernels(t *testing.T) {
	if !hasAVX2() {
		t.Log("this CPU uses the plain functions")
	}
	for id := range types {
		typ := Type(id)
		if fast[typ] == nil {
			continue
		}
		for blocks := range 20 {
			sameAsPlain(t, typ, oddBlocks(typ, blocks, uint64(id)))
		}
		sameAsPlain(t, typ, oddBlocks(typ, 1<<19/typ.BlockElements()+1, uint64(id)))
		golden(t, func(file string, of Type, q []byte, _ []float32) {
			if of == typ {
				sameAsPlain(t, typ, q)
			}
		})
	}
}

// TestKernelsEveryHalf: all halves as values and, in one type for all, as scales.
func TestKernelsEveryHalf(t *testing.T) {
	all := make([]byte, 0, 2<<16)
	for h := range 1 << 16 {
		all = le.AppendUint16(all, uint16(h))
	}
	scales := randomBytes(Q8_0.BlockBytes()<<16, 1)
	for h := range 1 << 16 {
		le.PutUint16(scales[h*Q8_0.BlockBytes():], uint16(h))
	}
	for typ, b := range map[Type][]byte{F16: all, BF16: all, Q8_0: scales} {
		if fast[typ] != nil {
			sameAsPlain(t, typ, b)
		}
	}
}

// TestKernelFault: a fault in the mapped file is a panic that can be recovered
// from, in assembly as elsewhere.
func TestKernelFault(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 1 << 16
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	b, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(b)
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for id := range types {
		typ := Type(id)
		if fast[typ] == nil {
			continue
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%v: read what is not there", typ)
				}
			}()
			n := size / typ.BlockBytes()
			fast[typ](make([]float32, n*typ.BlockElements()), b[:n*typ.BlockBytes()])
		}()
	}
}

// FuzzKernels: the same for any bytes.
func FuzzKernels(f *testing.F) {
	for _, typ := range []Type{F16, Q4_0, Q4_K, Q5_1, Q6_K} {
		f.Add(uint8(typ), oddBlocks(typ, 4, 3))
	}
	f.Fuzz(func(t *testing.T, id uint8, src []byte) {
		typ := Type(id) % Type(len(types))
		if fast[typ] != nil {
			sameAsPlain(t, typ, src[:len(src)/typ.BlockBytes()*typ.BlockBytes()])
		}
	})
}
