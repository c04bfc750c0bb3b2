package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
	"vbootfs/scripts/frame"
)

// small opens, reads to the end and closes small files.
func (b *bench) small() error {
	m, err := b.main()
	if err != nil {
		return err
	}
	for _, n := range []int{300, 10_000} {
		name := fmt.Sprintf("small-%d", n)
		file, err := b.model(name, ggufview.Gen{Tensors: n})
		if err == nil {
			err = m.load(file, name+".gguf")
		}
		if err != nil {
			return err
		}
		defer os.Remove(m.Out(name + ".gguf"))
	}
	const self = "/proc/self/status"
	files := []struct {
		name, path, peer string // peer: kind of the minimal file
	}{
		{"generation", m.Of("small-300.gguf", "generation"), "cached"},
		{"layout.json, 300 tensors", m.Of("small-300.gguf", "layout.json"), "cached"},
		{"layout.json, 10,000 tensors", m.Of("small-10000.gguf", "layout.json"), "cached"},
		{"status", m.Boot("status"), "direct"},
	}
	var sizes []int
	for _, f := range files {
		st, err := os.Stat(f.path)
		if err != nil {
			return err
		}
		sizes = append(sizes, int(st.Size()))
	}
	dir, err := b.minimal(sizes...)
	if err != nil {
		return err
	}
	for i, f := range files {
		peer := filepath.Join(dir, fmt.Sprintf("%s-%d", f.peer, sizes[i]))
		err := b.compare(pair{name: f.name, goal: 1 / 1.3, p99: true, rounds: 20,
			ours:   side{"open, read, close", b.opens(f.path)},
			theirs: side{"minimal go-fuse file, " + f.peer, b.opens(peer)}})
		if err != nil {
			return err
		}
		if i%3 != 0 {
			continue
		}
		err = b.compare(pair{name: f.name, p99: true,
			ours:   side{"open, read, close", b.opens(f.path)},
			theirs: side{self, b.opens(self)}})
		if err != nil {
			return err
		}
	}
	return frame.Unmount(dir)
}

// opens measures a few hundred times.
func (b *bench) opens(name string) func() ([]float64, error) {
	n := 400
	if st, err := os.Stat(name); b.quick || err == nil && st.Size() > 1<<20 {
		n = 100
	}
	buf := make([]byte, 128<<10)
	return many(n, func() error {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for {
			if k, err := unix.Read(fd, buf); k == 0 || err != nil && err != unix.EINTR {
				return err
			}
		}
	})
}
