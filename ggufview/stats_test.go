package ggufview

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"
)

func floatView(x []float32) View {
	b := make([]byte, 4*len(x))
	quantF32(b, x)
	return Bytes(b)
}

func mustStats(t testing.TB, typ Type, bigEndian bool, src View) *Stats {
	t.Helper()
	s, err := ComputeStats(t.Context(), typ, bigEndian, src)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// naiveStats computes the same the plain way.
func naiveStats(x []float32) (s Stats) {
	s.Count = int64(len(x))
	s.Min, s.Max = math.Inf(1), math.Inf(-1)
	var finite []float64
	for _, v := range x {
		switch f := float64(v); {
		case math.IsNaN(f):
			s.NaN++
		case math.IsInf(f, 0):
			s.Inf++
		default:
			finite = append(finite, f)
			s.Min, s.Max, s.Mean = math.Min(s.Min, f), math.Max(s.Max, f), s.Mean+f
			if f == 0 {
				s.Zeros++
			}
		}
	}
	s.Mean /= float64(len(finite))
	for _, f := range finite {
		s.Std += (f - s.Mean) * (f - s.Mean)
		s.Hist[min(63, int((f-s.Min)*(64/(s.Max-s.Min))))]++
	}
	s.Std = math.Sqrt(s.Std / float64(len(finite)))
	s.Lo, s.Hi = s.Min, s.Max
	return s
}

func TestStats(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{2, 100, statsChunk, 3*statsChunk + 17} {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(rnd.NormFloat64()*0.02 + 3)
			switch rnd.IntN(50) {
			case 0:
				x[i] = float32(math.NaN())
			case 1:
				x[i] = float32(math.Inf(1 - 2*rnd.IntN(2)))
			case 2:
				x[i] = float32(math.Copysign(0, -1))
			}
		}
		x[0], x[1] = 1, -2
		got, want := *mustStats(t, F32, false, floatView(x)), naiveStats(x)
		near := func(a, b float64) bool { return math.Abs(a-b) <= 1e-12*math.Abs(b) }
		if !near(got.Mean, want.Mean) || !near(got.Std, want.Std) {
			t.Errorf("%d values: mean %g and deviation %g, want %g and %g", n, got.Mean, got.Std, want.Mean, want.Std)
		}
		got.Mean, got.Std, want.Mean, want.Std = 0, 0, 0, 0
		if got != want {
			t.Errorf("%d values: %+v, want %+v", n, got, want)
		}
	}
}

// TestStatsDeterministic: the same bits with one processor and with many, for
// values read big-endian, too.
func TestStatsDeterministic(t *testing.T) {
	x := make([]float32, 20*statsChunk)
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range x {
		x[i] = float32(rnd.NormFloat64())
	}
	q := make([]byte, len(x)/32*34)
	if err := Quantize(Q8_0, true, q, x); err != nil {
		t.Fatal(err)
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	want := *mustStats(t, Q8_0, true, Bytes(q))
	for _, n := range []int{2, 7} {
		runtime.GOMAXPROCS(n)
		if got := *mustStats(t, Q8_0, true, Bytes(q)); got != want {
			t.Errorf("%d processors: %+v, want %+v", n, got, want)
		}
	}
}

func TestStatsOfOneValue(t *testing.T) {
	for _, c := range []struct {
		value, lo, hi float64
		bin           int
	}{{5, 4.5, 5.5, 32}, {0, -0.5, 0.5, 32}, {-math.MaxFloat32, -math.MaxFloat32, -math.MaxFloat32, 0}} {
		x := []float32{float32(c.value), float32(c.value)}
		s := mustStats(t, F32, false, floatView(x))
		if s.Mean != c.value || s.Std != 0 || s.Lo != c.lo || s.Hi != c.hi || s.Hist[c.bin] != 2 {
			t.Errorf("%g: %+v", c.value, s)
		}
	}
}

func TestStatsJSON(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(-1))
	for _, c := range []struct {
		x    []float32
		want string
	}{
		{nil, `{"count":0,"min":null,"max":null,"mean":null,"std":null,"nan":0,"inf":0,"zeros":0,"histogram":{"lo":null,"hi":null,"counts":[0,`},
		{[]float32{nan, inf, inf}, `{"count":3,"min":null,"max":null,"mean":null,"std":null,"nan":1,"inf":2,"zeros":0,"histogram":{"lo":null,"hi":null,"counts":[0,`},
		{[]float32{0, nan, 4}, `{"count":3,"min":0,"max":4,"mean":2,"std":2,"nan":1,"inf":0,"zeros":1,"histogram":{"lo":0,"hi":4,"counts":[1,0,`},
	} {
		got, err := json.Marshal(mustStats(t, F32, false, floatView(c.x)))
		if err != nil || !bytes.HasPrefix(got, []byte(c.want)) || !json.Valid(got) {
			t.Errorf("%v: %s (%v), want %s...", c.x, got, err, c.want)
		}
	}
}

func TestStatsErrors(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ComputeStats(ctx, F32, false, floatView(make([]float32, 10))); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	broken := shortView{Bytes(nil), 1 << 20}
	if s, err := ComputeStats(t.Context(), Q4_K, false, shortView{broken, 144 << 10}); err == nil {
		t.Errorf("a source that ends early: %+v", s)
	}
	if _, err := ComputeStats(t.Context(), 9, false, Bytes(nil)); err == nil {
		t.Error("Q8_1 has values")
	}
}

func BenchmarkStats(b *testing.B) {
	for _, typ := range []Type{F32, Q4_K} {
		b.Run(typ.String(), func(b *testing.B) {
			x := make([]float32, 1<<20)
			rnd := rand.New(rand.NewPCG(3, 4))
			for i := range x {
				x[i] = float32(rnd.NormFloat64())
			}
			q := make([]byte, len(x)/typ.BlockElements()*typ.BlockBytes())
			if err := Quantize(typ, false, q, x); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(4 * len(x)))
			for b.Loop() {
				if _, err := ComputeStats(b.Context(), typ, false, Bytes(q)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
