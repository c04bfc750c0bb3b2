package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vbootfs/scripts/frame"
)

// mapping maps the whole file and touches it.
func (b *bench) mapping(mounted func() (*mount, error)) error {
	m, err := mounted()
	if err != nil {
		return err
	}
	ours, theirs, size, err := b.twin(m)
	if err != nil {
		return err
	}
	through := m.pass() == "off"
	cold := 2.0
	if through {
		cold = 1
	}
	for _, r := range []struct {
		name  string
		goal  float64
		call  func(*os.File) ([]float64, error)
		bytes int64
	}{
		{"mmap, a word of each 64 bytes, cold", cold, mapCold(size), size},
		{"mmap, a word of each 64 bytes, again", 1, mapWarm(size), size},
		{"mmap, random pages", 1, mapRandom(size), 0},
		{"mmap MAP_POPULATE", 1, mapPopulate(size), size},
	} {
		err := b.compare(pair{name: r.name + b.suffix(), bytes: r.bytes, goal: r.goal,
			ours:   side{"model.gguf", opened(ours, through, r.call)},
			theirs: side{"the file in /dev/shm", opened(theirs, false, r.call)}})
		if err != nil {
			return err
		}
	}
	return b.four(ours, theirs, size, through)
}

// four is four processes that map the file at once.
func (b *bench) four(ours, theirs string, size int64, through bool) error {
	var pss [2]int64
	err := b.compare(pair{name: "mmap, 4 processes" + b.suffix(), bytes: 4 * size, goal: 1,
		ours:   side{"model.gguf", b.together(4, ours, through, &pss[0])},
		theirs: side{"the file in /dev/shm", b.together(4, theirs, false, &pss[1])}})
	if err == nil {
		per := func(n int64) string { return frame.Number(float64(n)/float64(size)) + " × the file" }
		b.report("memory of 4 processes"+b.suffix(), "sum of Pss", per(pss[0]), "in /dev/shm: "+per(pss[1]))
	}
	return err
}

// sink keeps the compiler from leaving reads out.
var sink uint64

// touch reads a word of each cache line.
func touch(data []byte) {
	var sum uint64
	for i := 0; i+256 <= len(data); i += 256 {
		sum += uint64(data[i]) + uint64(data[i+64]) + uint64(data[i+128]) + uint64(data[i+192])
	}
	sink += sum
}

func mapFile(f *os.File, size int64, flags int) ([]byte, error) {
	return unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED|flags)
}

func mapCold(size int64) func(*os.File) ([]float64, error) {
	return func(f *os.File) ([]float64, error) {
		begin := time.Now()
		data, err := mapFile(f, size, 0)
		if err != nil {
			return nil, err
		}
		touch(data)
		took := time.Since(begin).Seconds()
		return []float64{took}, unix.Munmap(data)
	}
}

func mapWarm(size int64) func(*os.File) ([]float64, error) {
	return func(f *os.File) ([]float64, error) {
		data, err := mapFile(f, size, 0)
		if err != nil {
			return nil, err
		}
		touch(data)
		begin := time.Now()
		touch(data)
		took := time.Since(begin).Seconds()
		return []float64{took}, unix.Munmap(data)
	}
}

// mapRandom gives the time of one page.
func mapRandom(size int64) func(*os.File) ([]float64, error) {
	const count = 4096
	return func(f *os.File) ([]float64, error) {
		data, err := mapFile(f, size, 0)
		if err != nil {
			return nil, err
		}
		r := rand.New(rand.NewPCG(3, 4))
		begin := time.Now()
		for range count {
			sink += uint64(data[r.Int64N(size/4096)*4096])
		}
		took := time.Since(begin).Seconds() / count
		return []float64{took}, unix.Munmap(data)
	}
}

func mapPopulate(size int64) func(*os.File) ([]float64, error) {
	return func(f *os.File) ([]float64, error) {
		begin := time.Now()
		data, err := mapFile(f, size, unix.MAP_POPULATE)
		if err != nil {
			return nil, err
		}
		took := time.Since(begin).Seconds()
		return []float64{took}, unix.Munmap(data)
	}
}

// childMap maps FILE and touches it when it is told to. It keeps it mapped until its input ends.
func childMap(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	in := bufio.NewReader(os.Stdin)
	fmt.Println("ready")
	if _, err := in.ReadString('\n'); err != nil {
		return err
	}
	data, err := mapFile(f, st.Size(), 0)
	if err != nil {
		return err
	}
	touch(data)
	fmt.Println("done")
	_, _ = in.ReadString('\n')
	return nil
}

// together lets n processes map a file at the same time, and adds up their Pss.
func (b *bench) together(n int, file string, first bool, pss *int64) func() ([]float64, error) {
	return opened(file, first, func(*os.File) ([]float64, error) {
		var all []*child
		defer func() {
			for _, c := range all {
				c.end()
			}
		}()
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		for range n {
			c, err := startChild(exec.CommandContext(b.ctx, self, "child-map", file))
			if err != nil {
				return nil, err
			}
			all = append(all, c)
		}
		begin := time.Now()
		for _, c := range all {
			if err := c.tell("go"); err != nil {
				return nil, err
			}
		}
		for _, c := range all {
			if _, err := c.line(); err != nil {
				return nil, err
			}
		}
		took := time.Since(begin).Seconds()
		*pss = 0
		for _, c := range all {
			*pss += pssOf(c.cmd.Process.Pid, file)
		}
		return []float64{took}, nil
	})
}

// pssOf is a process's proportional share of a file that it has mapped.
func pssOf(pid int, file string) (sum int64) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	ours := false
	for l := range strings.Lines(string(text)) {
		f := strings.Fields(l)
		switch {
		case len(f) >= 5 && strings.Contains(f[0], "-"):
			ours = slices.Contains(f, file)
		case ours && len(f) > 1 && f[0] == "Pss:":
			n, _ := strconv.ParseInt(f[1], 10, 64)
			sum += n << 10
		}
	}
	return sum
}
