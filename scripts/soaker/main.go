// Command soaker works on a mount for a long time and checks that it keeps its
// promises and its size. scripts/soak builds and runs it.
//
//	main.go     options and phases
//	worker.go   workers and what they do
//	names.go    the names in the mount and what they must hold
//	measure.go  what must not grow
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"vbootfs/scripts/frame"
)

// soak is a run.
type soak struct {
	ctx     context.Context
	m       frame.Mount
	dirs    frame.Dirs
	seed    uint64
	workers int
	library []string // files of models
	names   []*name

	world  sync.RWMutex // held for reading by every operation; by a kill and a measurement alone
	commit sync.RWMutex // held for reading by readers: a commit changes bytes in place
	killed atomic.Bool  // the daemon has been killed: operations may fail
	known  sync.Map     // SHA-256 of all that was ever meant to be in a file

	mu     sync.Mutex // guards all below
	counts map[string]int
	failed error // the first
}

func main() { frame.Main("soak", start) }

func start(ctx context.Context) (err error) {
	s := &soak{ctx: ctx, counts: map[string]int{}}
	minutes := flag.Float64("minutes", 10, "how long")
	flag.Uint64Var(&s.seed, "seed", uint64(time.Now().Unix()), "of the random choices")
	flag.IntVar(&s.workers, "workers", 4, "at the same time")
	flag.StringVar(&s.m.Binary, "binary", "", "vbootfs; scripts/soak gives it")
	flag.Parse()
	if flag.NArg() > 0 || s.m.Binary == "" || *minutes <= 0 || s.workers < 1 {
		return errors.New("usage: scripts/soak [--minutes M] [--seed S] [--workers N]")
	}
	if s.dirs, err = frame.MakeDirs("soak"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.dirs.Remove()) }()
	fmt.Printf("%s; seed %d, %d workers, %g minutes\n", frame.Machine(), s.seed, s.workers, *minutes)
	if err := s.prepare(); err != nil {
		return err
	}
	err = s.phases(time.Duration(*minutes * float64(time.Minute)))
	for _, op := range slices.Sorted(maps.Keys(s.counts)) {
		fmt.Printf("%8s %s\n", frame.Thousands(s.counts[op]), op)
	}
	return err
}

// prepare makes models and mounts.
func (s *soak) prepare() error {
	for i := range 8 {
		file := filepath.Join(s.dirs.Disk, fmt.Sprintf("model%d.gguf", i))
		size := fmt.Sprintf("%dK", 128<<(i%4))
		if err := frame.Command(s.ctx, s.m.Binary, "gen-model", "--size", size, "--tokens", "50", "--seed", strconv.Itoa(i+1), file); err != nil {
			return err
		}
		sum, err := sumOf(file)
		if err != nil {
			return err
		}
		s.known.Store(sum, true)
		s.library = append(s.library, file)
	}
	for i := range 10 {
		s.names = append(s.names, &name{p: []string{"a", "b", "sub/c", "sub/d"}[i%4] + strconv.Itoa(i) + ".gguf"})
	}
	s.m.Source, s.m.Dir = filepath.Join(s.dirs.Disk, "source"), filepath.Join(s.dirs.Disk, "mnt")
	s.m.Opts = []string{"size=256M", "segdir=" + s.segments(), "log=" + s.log()}
	if err := errors.Join(os.Mkdir(s.m.Source, 0o755), os.Mkdir(s.m.Dir, 0o755)); err != nil {
		return err
	}
	if err := s.m.Start(s.ctx); err != nil {
		return err
	}
	return os.Mkdir(s.m.Out("sub"), 0o755)
}

func (s *soak) segments() string { return filepath.Join(s.dirs.Shm, "segments") }
func (s *soak) log() string      { return filepath.Join(s.dirs.Disk, "log") }

// phases are: with kills, then without, so that one daemon has lived for half of
// the time when it is compared with itself.
func (s *soak) phases(total time.Duration) error {
	s.work(total*4/10, true)
	s.work(total/10, false)
	before := s.measure()
	s.work(total/2, false)
	after := s.measure()
	if s.over() {
		return errors.Join(s.failed, s.ctx.Err())
	}
	fmt.Printf("%-12s %12s %12s\n", "", "before", "after")
	for i, b := range before {
		fmt.Printf("%-12s %12s %12s\n", b.what, frame.Thousands(b.n), frame.Thousands(after[i].n))
		if after[i].n > b.n+b.n/4+b.slack {
			s.fail("measurement", fmt.Errorf("%s grew from %d to %d", b.what, b.n, after[i].n))
		}
	}
	return errors.Join(s.failed, s.end())
}

// end checks all that is left, mounted and unmounted.
func (s *soak) end() error {
	err := errors.Join(s.verifyAll(), s.settle(), frame.Command(s.ctx, s.m.Binary, "check", s.m.Dir))
	if err = errors.Join(err, s.m.Stop()); err != nil {
		return err
	}
	for _, n := range s.names {
		have, err := sumOf(filepath.Join(s.m.Source, n.p))
		if errors.Is(err, os.ErrNotExist) {
			have, err = "", nil
		}
		if err != nil || have != n.want {
			return fmt.Errorf("%s in SOURCE is %q, want %q: %w", n.p, have, n.want, err)
		}
	}
	if left, _ := os.ReadDir(s.segments()); len(left) > 0 {
		return fmt.Errorf("left in the segment directory: %v", left)
	}
	return errors.Join(frame.Command(s.ctx, s.m.Binary, "check", s.m.Source), s.complaints())
}
