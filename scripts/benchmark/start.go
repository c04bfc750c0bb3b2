package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"vbootfs/ggufview"
	"vbootfs/scripts/frame"
)

// start measures beginnings: mounting, the first read of what is only on disk, listing.
func (b *bench) start() error {
	return errors.Join(b.mounting(), b.coldRead(), b.listing())
}

// mounting mounts a SOURCE with 100 models, after a clean end and after a crash.
func (b *bench) mounting() error {
	const count = 100
	file, err := b.model("source", ggufview.Gen{Bytes: 640 << 10, Tokens: 1000})
	if err != nil {
		return err
	}
	src := filepath.Join(b.Disk, "source")
	if err := os.Mkdir(src, 0o755); err != nil {
		return err
	}
	headers := []any{}
	for i := range count {
		to := filepath.Join(src, fmt.Sprintf("m%d.gguf", i))
		if err := copyFile(file, to); err != nil {
			return err
		}
		headers = append(headers, to)
	}
	m, err := b.newMount(src)
	if err != nil {
		return err
	}
	mounted := func(prepare func() error) func() ([]float64, error) {
		return func() ([]float64, error) {
			if err := prepare(); err != nil {
				return nil, err
			}
			begin := time.Now()
			err := m.Start(b.ctx)
			return []float64{time.Since(begin).Seconds()}, err
		}
	}
	err = b.compare(pair{name: "mount of a SOURCE of 100 models",
		ours:   side{"vbootfs SOURCE MNT", mounted(m.Stop)},
		theirs: side{"gguf_init_from_file of each", func() ([]float64, error) { return b.ask("gguf_init", headers...) }}})
	if err != nil {
		return err
	}
	crash := func() error {
		for i := range count { // all in memory
			if _, err := os.ReadFile(m.Of(fmt.Sprintf("m%d.gguf", i), "model.gguf")); err != nil {
				return err
			}
		}
		return m.Kill()
	}
	err = b.compare(pair{name: "re-attach of 100 loaded models",
		ours:   side{"vbootfs SOURCE MNT after kill -9", mounted(crash)},
		theirs: side{"the same after umount", mounted(m.Stop)}})
	return errors.Join(err, m.Stop())
}

// coldRead is the first read of a model that is only in SOURCE.
func (b *bench) coldRead() error {
	file, err := b.large()
	if err != nil {
		return err
	}
	src := filepath.Join(b.Disk, "cold")
	if err := os.Mkdir(src, 0o755); err != nil {
		return err
	}
	own := filepath.Join(src, "large.gguf")
	if err := os.Link(file, own); err != nil {
		return err
	}
	st, err := os.Stat(own)
	if err != nil {
		return err
	}
	m, err := b.newMount(src)
	if err != nil {
		return err
	}
	// Mounted anew each time, so that nothing is loaded.
	again := func(disk bool, f func() error) func() ([]float64, error) {
		return func() ([]float64, error) {
			if err := errors.Join(m.Stop(), m.Start(b.ctx)); err != nil {
				return nil, err
			}
			if disk {
				if err := drop(own); err != nil {
					return nil, err
				}
			}
			return timed(f)()
		}
	}
	for _, c := range []struct {
		name string
		disk bool
	}{{"in the page cache", false}, {"on disk", true}} {
		err = errors.Join(err, b.compare(pair{name: "first read of a cold model, SOURCE " + c.name, bytes: st.Size(), rounds: 3,
			ours:   side{"cat model.gguf", again(c.disk, b.shell(`cat "$1" >/dev/null`, m.Of("large.gguf", "model.gguf")))},
			theirs: side{"cat of the file in SOURCE", again(c.disk, b.shell(`cat "$1" >/dev/null`, own))}}))
	}
	return errors.Join(err, m.Stop(), os.RemoveAll(src))
}

// drop takes a file out of the page cache.
func drop(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return forget(f)
}

// listing is ls -lR of 10,000 tensors.
func (b *bench) listing() error {
	count := 10_000
	if b.quick {
		count = 1000
	}
	name := fmt.Sprintf("list-%d", count)
	file, err := b.model(name, ggufview.Gen{Tensors: count})
	if err != nil {
		return err
	}
	m, err := b.main()
	if err != nil {
		return err
	}
	defer os.Remove(m.Out(name + ".gguf"))
	load := func() error {
		if err := os.Remove(m.Out(name + ".gguf")); err != nil && !os.IsNotExist(err) {
			return err
		}
		return m.load(file, name+".gguf")
	}
	if err := load(); err != nil {
		return err
	}
	ours, theirs := m.Of(name+".gguf", "tensors"), filepath.Join(b.Shm, "tree")
	if err := shape(ours, theirs); err != nil {
		return err
	}
	defer os.RemoveAll(theirs)
	list := func(dir string) func() error { return b.shell(`ls -lR "$1" >/dev/null`, dir) }
	fresh := func() ([]float64, error) {
		if err := load(); err != nil {
			return nil, err
		}
		return timed(list(ours))()
	}
	what := fmt.Sprintf("ls -lR of %s tensors", frame.Thousands(count))
	return errors.Join(
		b.compare(pair{name: what + ", first time", goal: 0.25, rounds: 3,
			ours: side{"a new generation", fresh}, theirs: side{"the same tree on tmpfs", timed(list(theirs))}}),
		b.compare(pair{name: what + ", again", goal: 0.25, rounds: 3,
			ours: side{"tensors/", timed(list(ours))}, theirs: side{"the same tree on tmpfs", timed(list(theirs))}}))
}

// shape makes a tree of the same names and sizes, without content.
func shape(from, to string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		at := filepath.Join(to, rel)
		if d.IsDir() {
			return os.Mkdir(at, 0o755)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return errors.Join(os.WriteFile(at, nil, 0o444), os.Truncate(at, info.Size()))
	})
}
