package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"vbootfs/ggufview"
	"vbootfs/scripts/frame"
)

// scale shows how time and memory grow.
func (b *bench) scale() error {
	return errors.Join(b.manyModels(), b.manyTensors(), b.manyReaders())
}

// manyModels loads 1 to 1,000 small models into a mount of their own.
func (b *bench) manyModels() error {
	file, err := b.model("tiny", tiny)
	if err != nil {
		return err
	}
	counts := []int{1, 10, 100, 1000}
	if b.quick {
		counts = counts[:3]
	}
	var n, took []float64
	for _, c := range counts {
		m, err := b.newMount("none")
		if err != nil {
			return err
		}
		before := m.RSS()
		begin := time.Now()
		for i := range c {
			if err := errors.Join(copyFile(file, m.Out(fmt.Sprintf("m%d.gguf", i))), b.ctx.Err()); err != nil {
				return err
			}
		}
		t := time.Since(begin).Seconds()
		grown := m.RSS() - before
		list := time.Now()
		if _, err := os.ReadDir(m.Boot("models")); err != nil {
			return err
		}
		listed := time.Since(list).Seconds()
		n, took = append(n, float64(c)), append(took, t)
		b.report(fmt.Sprintf("%s models", frame.Thousands(c)), "load each", secondsText(t/float64(c)),
			fmt.Sprintf("daemon grew by %s, %s a model; ls models/ %s", frame.BytesText(grown), frame.BytesText(grown/int64(c)), secondsText(listed)))
		if err := m.Stop(); err != nil {
			return err
		}
	}
	b.report("models", "time to load n grows as n to the", frame.Number(exponent(n, took)), "")
	return nil
}

// manyTensors loads models of growing tensor counts.
func (b *bench) manyTensors() error {
	m, err := b.newMount("none")
	if err != nil {
		return err
	}
	var n, took []float64
	for _, c := range []int{100, 1000, 10_000} {
		name := fmt.Sprintf("tensors-%d", c)
		file, err := b.model(name, ggufview.Gen{Tensors: c})
		if err != nil {
			return err
		}
		before := m.RSS()
		if err := m.load(file, name+".gguf"); err != nil {
			return err
		}
		t, err := m.loadSeconds(name + ".gguf")
		if err != nil {
			return err
		}
		loaded := m.RSS() - before
		if _, err := os.ReadDir(m.Of(name+".gguf", "tensors")); err != nil {
			return err
		}
		if err := b.command("ls", "-lR", m.Of(name+".gguf", "tensors")); err != nil {
			return err
		}
		walked := m.RSS() - before
		n, took = append(n, float64(c)), append(took, t)
		b.report(fmt.Sprintf("%s tensors", frame.Thousands(c)), "load, in the daemon", secondsText(t),
			fmt.Sprintf("daemon grew by %s, %s a tensor; %s a tensor after ls -lR", frame.BytesText(loaded), frame.BytesText(loaded/int64(c)), frame.BytesText(walked/int64(c))))
	}
	b.report("tensors", "time to load n grows as n to the", frame.Number(exponent(n, took)), "")
	return m.Stop()
}

// manyReaders reads the large model with 1 to 64 readers at once.
func (b *bench) manyReaders() error {
	m, err := b.main()
	if err != nil {
		return err
	}
	ours, theirs, size, err := b.twin(m)
	if err != nil {
		return err
	}
	for _, k := range []int{1, 4, 16, 64} {
		part := min(size, 2*size/int64(k)) // all together not more than twice the file
		err := b.compare(pair{name: fmt.Sprintf("%d readers at once", k), bytes: part * int64(k), goal: 1, rounds: 3,
			ours:   side{"read 1M of model.gguf", readers(k, ours, part)},
			theirs: side{"the file in /dev/shm", readers(k, theirs, part)}})
		if err != nil {
			return err
		}
	}
	text := filepath.Join(m.Of("large.gguf", "generation"))
	for _, k := range []int{1, 4, 16, 64} {
		all, err := together(k, func() error {
			for range 1000 / k {
				if _, err := os.ReadFile(text); err != nil {
					return err
				}
			}
			return nil
		})()
		if err != nil {
			return err
		}
		b.report(fmt.Sprintf("%d readers of generation", k), "each, the others included", secondsText(all[0]/float64(1000/k*k)), "")
	}
	return nil
}

// readers read the first part of a file, each through a descriptor of its own.
func readers(k int, name string, part int64) func() ([]float64, error) {
	return together(k, func() error {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		buf := make([]byte, 1<<20)
		for at := int64(0); at < part; at += int64(len(buf)) {
			if _, err := f.ReadAt(buf[:min(int64(len(buf)), part-at)], at); err != nil {
				return err
			}
		}
		return nil
	})
}

// together runs f k times at once.
func together(k int, f func() error) func() ([]float64, error) {
	return timed(func() error {
		errs := make([]error, k)
		var wg sync.WaitGroup
		for i := range k {
			wg.Go(func() { errs[i] = f() })
		}
		wg.Wait()
		return errors.Join(errs...)
	})
}

// tiny is a small model.
var tiny = ggufview.Gen{Bytes: 64 << 10}
