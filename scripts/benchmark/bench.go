package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bench is a run.
type bench struct {
	options
	ctx   context.Context
	tmp   string // on disk: models, mount points
	shm   string // on /dev/shm: the peers' files, segments
	group group
	lines []line

	mounts []*mount
	serial int
	shared map[string]*mount // by options
	models map[string]string // generated ones, by key
	py     *python
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

// name of directories of a run; the number is the process.
const prefix = "vbootfs-bench-"

func newBench(ctx context.Context, o options) (*bench, error) {
	b := &bench{options: o, ctx: ctx, shared: map[string]*mount{}, models: map[string]string{}}
	name := prefix + strconv.Itoa(os.Getpid())
	b.tmp, b.shm = filepath.Join(os.TempDir(), name), filepath.Join("/dev/shm", name)
	sweep()
	if err := b.checkMemory(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(b.tmp, 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(b.shm, 0o755); err != nil {
		return nil, errors.Join(err, os.Remove(b.tmp))
	}
	return b, nil
}

// sweep removes what earlier runs left that were killed.
func sweep() {
	for _, dir := range []string{os.TempDir(), "/dev/shm"} {
		left, _ := filepath.Glob(filepath.Join(dir, prefix+"*"))
		for _, d := range left {
			pid := strings.TrimPrefix(filepath.Base(d), prefix)
			if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
				_ = clear(d) // what stays is tried again next time
			}
		}
	}
}

// clear removes a directory of a run, with the mounts in it and their daemons.
func clear(dir string) error {
	for _, m := range mountsBelow(dir) {
		unmount(m)
	}
	endDaemons(dir)
	for _, m := range mountsBelow(dir) { // segments, or the mount of a daemon that was dead
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
	if left := mountsBelow(dir); len(left) > 0 {
		return fmt.Errorf("still mounted: %v", left)
	}
	return os.RemoveAll(dir)
}

func (b *bench) close() error {
	if b.py != nil {
		b.py.close()
	}
	return errors.Join(clear(b.tmp), clear(b.shm))
}

// checkMemory refuses to run a machine out of memory: the large model is in the
// mount, in /dev/shm, twice in the page cache, and an old one may be open.
func (b *bench) checkMemory() error {
	need, free := 4*b.size+1<<30, meminfo("MemAvailable")
	if free < need {
		return fmt.Errorf("--size %s needs %s of memory, %s is available", bytesText(b.size), bytesText(need), bytesText(free))
	}
	return nil
}

// meminfo is a line of /proc/meminfo in bytes.
func meminfo(key string) int64 {
	text, _ := os.ReadFile("/proc/meminfo")
	for l := range strings.Lines(string(text)) {
		if f := strings.Fields(l); len(f) > 1 && f[0] == key+":" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n << 10
		}
	}
	return 0
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
				b.add(line{what: p.name, ours: p.ours.what, theirs: p.theirs.what, note: "not measured: " + firstLine(err.Error())})
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
