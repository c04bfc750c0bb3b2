package ggufview

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
)

// statsChunk is the values that one step of ComputeStats reads, a multiple of
// every block. It is fixed, because sums depend on how they are grouped.
const statsChunk = 1 << 15

// Stats describes the values of a tensor as float32. Min, Max, Mean and Std
// (of the population) are over the finite values and 0 if there are none.
type Stats struct {
	Count, NaN, Inf, Zeros int64
	Min, Max, Mean, Std    float64

	// Hist counts finite values in 64 bins of equal width from Lo to Hi, each
	// with its lower edge, the last with both. Lo and Hi are Min and Max, or half
	// below and above if these are equal (as numpy.histogram).
	Lo, Hi float64
	Hist   [64]int64
}

// finite is the number of values that are neither NaN nor infinite.
func (s *Stats) finite() int64 { return s.Count - s.NaN - s.Inf }

// MarshalJSON gives an object with count, min, max, mean, std, nan, inf, zeros
// and histogram {lo, hi, counts}; null where there is no finite value.
func (s *Stats) MarshalJSON() ([]byte, error) {
	number := func(v float64) *float64 {
		if s.finite() == 0 {
			return nil
		}
		return &v
	}
	type histogram struct {
		Lo     *float64  `json:"lo"`
		Hi     *float64  `json:"hi"`
		Counts [64]int64 `json:"counts"`
	}
	return json.Marshal(struct {
		Count     int64     `json:"count"`
		Min       *float64  `json:"min"`
		Max       *float64  `json:"max"`
		Mean      *float64  `json:"mean"`
		Std       *float64  `json:"std"`
		NaN       int64     `json:"nan"`
		Inf       int64     `json:"inf"`
		Zeros     int64     `json:"zeros"`
		Histogram histogram `json:"histogram"`
	}{s.Count, number(s.Min), number(s.Max), number(s.Mean), number(s.Std), s.NaN, s.Inf, s.Zeros,
		histogram{number(s.Lo), number(s.Hi), s.Hist}})
}

// ComputeStats reads src, whole blocks of type t, twice with all processors. The
// result does not depend on their number. It ends early with ctx's error.
func ComputeStats(ctx context.Context, t Type, bigEndian bool, src View) (*Stats, error) {
	values, err := F32View(t, bigEndian, src)
	if err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	moments := make([]moments, (values.Size()/4+statsChunk-1)/statsChunk)
	if err := eachChunk(ctx, values, func(i int, x []float32) { moments[i] = momentsOf(x) }); err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	total := newMoments()
	for i := range moments {
		total.merge(&moments[i])
	}
	s := total.stats()
	if s.finite() == 0 {
		return s, nil
	}
	var lock sync.Mutex // s.Hist
	err = eachChunk(ctx, values, func(_ int, x []float32) {
		counts := histogramOf(x, s.Lo, s.Hi)
		lock.Lock()
		defer lock.Unlock()
		for i, n := range counts {
			s.Hist[i] += n
		}
	})
	if err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	return s, nil
}

// eachChunk calls do for every chunk of float32 values, on all processors, and
// returns the first error of reading or of ctx.
func eachChunk(ctx context.Context, values View, do func(i int, x []float32)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var group sync.WaitGroup
	chunks := (values.Size() + 4*statsChunk - 1) / (4 * statsChunk)
	for range min(int64(min(runtime.GOMAXPROCS(0), runtime.NumCPU())), chunks) {
		group.Go(func() {
			buffer := make([]float32, statsChunk)
			for i := next.Add(1) - 1; i < chunks && ctx.Err() == nil; i = next.Add(1) - 1 {
				x := buffer[:min(statsChunk, values.Size()/4-i*statsChunk)]
				if err := readFull(values, floatBytes(x), 4*i*statsChunk); err != nil {
					cancel(err)
					return
				}
				if !littleHost {
					types[F32].wide.swap(floatBytes(x), 4)
				}
				do(int(i), x)
			}
		})
	}
	group.Wait()
	return context.Cause(ctx)
}

// moments are the sums of a run of values; m2 is the sum of squared distances
// from the mean, which stays exact where a sum of squares would cancel.
type moments struct {
	count, nan, inf, zeros int64
	min, max, mean, m2     float64
}

func newMoments() moments { return moments{min: math.Inf(1), max: math.Inf(-1)} }

func (m *moments) finite() int64 { return m.count - m.nan - m.inf }

// infinite is the float32 bits of an infinity; those of NaNs are above.
const infinite = 0x7f800000

// momentsOf goes over x twice while it is in the cache: the mean, then the distances.
func momentsOf(x []float32) moments {
	m := newMoments()
	m.count = int64(len(x))
	low, high := float32(math.MaxFloat32), float32(-math.MaxFloat32)
	var sum float64
	for _, v := range x {
		switch bits := math.Float32bits(v) &^ (1 << 31); {
		case bits > infinite:
			m.nan++
			continue
		case bits == infinite:
			m.inf++
			continue
		case bits == 0:
			m.zeros++
		}
		if v < low {
			low = v
		}
		if v > high {
			high = v
		}
		sum += float64(v)
	}
	if m.finite() == 0 {
		return m
	}
	mean, squares := sum/float64(m.finite()), 0.0
	for _, v := range x {
		if math.Float32bits(v)&^(1<<31) < infinite {
			d := float64(v) - mean
			squares += float64(d * d)
		}
	}
	m.min, m.max, m.mean, m.m2 = float64(low), float64(high), mean, squares
	return m
}

// merge adds the values of b behind those of m (Chan, Golub, LeVeque 1979).
func (m *moments) merge(b *moments) {
	n, nb := float64(m.finite()), float64(b.finite())
	if nb > 0 {
		delta := b.mean - m.mean
		m.mean += float64(delta * (nb / (n + nb)))
		m.m2 += b.m2 + float64(delta*delta*(n*nb/(n+nb)))
	}
	m.min, m.max = min(m.min, b.min), max(m.max, b.max)
	m.count, m.nan, m.inf, m.zeros = m.count+b.count, m.nan+b.nan, m.inf+b.inf, m.zeros+b.zeros
}

// stats is everything but the histogram's counts.
func (m *moments) stats() *Stats {
	s := &Stats{Count: m.count, NaN: m.nan, Inf: m.inf, Zeros: m.zeros}
	n := m.finite()
	if n == 0 {
		return s
	}
	s.Min, s.Max, s.Mean, s.Std = m.min, m.max, m.mean, math.Sqrt(m.m2/float64(n))
	s.Lo, s.Hi = s.Min, s.Max
	if s.Lo == s.Hi {
		s.Lo, s.Hi = s.Lo-0.5, s.Hi+0.5
	}
	return s
}

// histogramOf counts the finite values of x, which lie between lo and hi.
func histogramOf(x []float32, lo, hi float64) (counts [64]int64) {
	scale := 64 / (hi - lo)
	if lo == hi { // so large that half more or less is the same
		scale = 0
	}
	for _, v := range x {
		f := float64(v)
		if f >= lo && f <= hi { // neither NaN nor infinite
			counts[min(63, int((f-lo)*scale))]++
		}
	}
	return counts
}
