package main

import (
	"context"
	"fmt"
	"time"

	"vbootfs/scripts/frame"
)

// bench is a run.
type bench struct {
	options
	ctx        context.Context
	frame.Dirs // on disk models and mount points, in shared memory the peers' files and segments
	group      group
	lines      []line

	serial int
	shared map[string]*mount // by options
	models map[string]string // generated ones, by key
	py     *worker
	peer   *worker // gguf-parser-go
}

// side is one of the two things that a row compares.
type side struct {
	what string                    // the command or the calls
	run  func() ([]float64, error) // measures once; seconds
}

// pair is a row to be measured.
type pair struct {
	name         string
	ours, theirs side
	bytes        int64   // moved by one measurement; 0: times are shown, not rates
	goal         float64 // at least so many times as fast; 0: none
	rounds       int     // at most so many; 0: as the command line says
	p99          bool    // show the 99th percentile, not the extremes
	cold         bool    // the first measurement counts, too
	note         string
}

func newBench(ctx context.Context, o options) (*bench, error) {
	b := &bench{options: o, ctx: ctx, shared: map[string]*mount{}, models: map[string]string{}}
	if err := b.checkMemory(); err != nil {
		return nil, err
	}
	var err error
	b.Dirs, err = frame.MakeDirs("bench")
	return b, err
}

func (b *bench) close() error {
	for _, w := range []*worker{b.py, b.peer} {
		if w != nil {
			w.close()
		}
	}
	return b.Remove()
}

// checkMemory refuses to run a machine out of memory: the large model is in the
// mount, in /dev/shm, twice in the page cache, and an old one may be open.
func (b *bench) checkMemory() error {
	need, free := 4*b.size+1<<30, frame.Meminfo("MemAvailable")
	if free < need {
		return fmt.Errorf("--size %s needs %s of memory, %s is available", frame.BytesText(b.size), frame.BytesText(need), frame.BytesText(free))
	}
	return nil
}

// compare measures a row, the two sides by turns, and prints it.
func (b *bench) compare(p pair) error {
	if !b.row.MatchString(p.name) {
		return nil
	}
	n := b.rounds
	if p.rounds > 0 {
		n = min(n, p.rounds)
	}
	if b.group.number == 11 {
		n = min(n, 3) // slow
	}
	first := -1 // not counted: it brings pages and caches in
	if p.cold {
		first = 0
	}
	var ours, theirs []float64
	for i := first; i < n; i++ {
		for _, s := range []struct {
			side
			all *[]float64
		}{{p.ours, &ours}, {p.theirs, &theirs}} {
			got, err := s.run()
			if b.ctx.Err() != nil {
				return b.ctx.Err()
			}
			if err != nil {
				b.add(line{what: p.name, ours: p.ours.what, theirs: p.theirs.what, note: "not measured: " + frame.FirstLine(err.Error())})
				return nil
			}
			if i >= 0 {
				*s.all = append(*s.all, got...)
			}
		}
	}
	l := line{what: p.name, ours: p.ours.what, theirs: p.theirs.what, goal: p.goal, note: p.note}
	l.ratio = median(theirs) / median(ours)
	l.oursValue, l.theirsValue = p.text(ours), p.text(theirs)
	b.add(l)
	return nil
}

// report prints a row that has no peer.
func (b *bench) report(name, what, value, note string) {
	if b.row.MatchString(name) {
		b.add(line{what: name, ours: what, oursValue: value, note: note})
	}
}

// timed measures how long f takes.
func timed(f func() error) func() ([]float64, error) {
	return func() ([]float64, error) {
		begin := time.Now()
		err := f()
		return []float64{time.Since(begin).Seconds()}, err
	}
}

// many measures f so often that single calls can be told apart, and gives each.
func many(n int, f func() error) func() ([]float64, error) {
	return func() ([]float64, error) {
		all := make([]float64, n)
		for i := range all {
			begin := time.Now()
			if err := f(); err != nil {
				return nil, err
			}
			all[i] = time.Since(begin).Seconds()
		}
		return all, nil
	}
}
