package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
)

// header measures models that are almost only header: from the last write until
// they are loaded, and their reading alone.
func (b *bench) header() error {
	m, err := b.main()
	if err != nil {
		return err
	}
	many := []struct {
		name string
		gen  ggufview.Gen
	}{
		{"150,000 strings", ggufview.Gen{Tokens: 150_000}},
		{"777,000 strings", ggufview.Gen{Tokens: 777_000}},
		{"10,000 tensors", ggufview.Gen{Tensors: 10_000}},
		{"100,000 tensors", ggufview.Gen{Tensors: 100_000}},
	}
	for i, c := range many {
		if b.quick && i%2 == 1 {
			continue
		}
		if err := b.headerRows(m, c.name, c.gen); err != nil {
			return err
		}
	}
	return b.realHeaders()
}

// realVocabularies are models of llama.cpp's collection, where they are at hand.
const realVocabularies = "../shared/data/real/*.gguf"

func (b *bench) realHeaders() error {
	files, err := filepath.Glob(realVocabularies)
	if err != nil || len(files) == 0 {
		return err
	}
	return b.parsing(fmt.Sprintf("%d real vocabularies", len(files)), files...)
}

// parsing compares the reading of headers alone, of files that are in memory.
func (b *bench) parsing(name string, files ...string) error {
	ours := side{"mmap and ggufview.Parse", timed(func() error { return parseAll(files) })}
	return errors.Join(
		b.compare(pair{name: name + ", the header", goal: 10, ours: ours,
			theirs: side{"gguf_init_from_file", func() ([]float64, error) { return b.ask("gguf_init", anys(files)...) }}}),
		b.compare(pair{name: name + ", the header", goal: 8, ours: ours,
			theirs: side{"gguf-parser-go, mapped, without long arrays", func() ([]float64, error) { return b.askPeer(files...) }}}),
		b.compare(pair{name: name + ", the header", goal: 8, rounds: 1, ours: ours, cold: true,
			theirs: side{"gguf-py GGUFReader", func() ([]float64, error) { return b.ask("gguf_reader", anys(files)...) }}}))
}

func parseAll(files []string) error {
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		st, err := f.Stat()
		if err != nil {
			return errors.Join(err, f.Close())
		}
		b, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
		if err == nil {
			_, err = ggufview.Parse(b, st.Size())
			err = errors.Join(err, unix.Munmap(b))
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) headerRows(m *mount, name string, g ggufview.Gen) error {
	file, err := b.model(strings.ReplaceAll(name, " ", "-"), g)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	shm := filepath.Join(b.Shm, "header.gguf")
	if err := copyFile(file, shm); err != nil {
		return err
	}
	defer os.Remove(shm)
	defer os.Remove(m.Out("header.gguf"))
	var event, layout []float64
	ours := side{"last write to close() returned", func() ([]float64, error) {
		c, l, err := m.closing(data)
		if err != nil {
			return nil, err
		}
		e, err := m.loadSeconds("header.gguf")
		event, layout = append(event, e), append(layout, l)
		return []float64{c}, err
	}}
	err = b.compare(pair{name: name, goal: 10, ours: ours,
		theirs: side{"gguf_init_from_file", func() ([]float64, error) { return b.ask("gguf_init", shm) }}})
	if err != nil {
		return err
	}
	if len(event) > 0 {
		b.report(name+", in the daemon", `"seconds" of the event`, pair{}.text(event), "until layout.tsv is read whole: "+pair{}.text(layout))
	}
	return b.parsing(name, shm)
}

// closing writes a model and gives the time of its close, and until its layout was read.
func (m *mount) closing(data []byte) (closed, laidOut float64, err error) {
	name := m.Out("header.gguf")
	if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
		return 0, 0, err
	}
	f, err := os.Create(name)
	if err != nil {
		return 0, 0, err
	}
	if _, err := f.Write(data); err != nil {
		return 0, 0, errors.Join(err, f.Close())
	}
	begin := time.Now()
	if err := f.Close(); err != nil {
		return 0, 0, err
	}
	closed = time.Since(begin).Seconds()
	l, err := os.Open(m.Of("header.gguf", "layout.tsv"))
	if err != nil {
		return 0, 0, err
	}
	_, err = io.Copy(io.Discard, l)
	laidOut = time.Since(begin).Seconds()
	return closed, laidOut, errors.Join(err, l.Close())
}

// loadSeconds is what the daemon says about the last load of a model.
func (m *mount) loadSeconds(model string) (seconds float64, err error) {
	f, err := os.Open(m.Boot("events.log"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var e struct {
			Event, Model string
			Seconds      float64
		}
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			return 0, err
		}
		if e.Model == model && (e.Event == "load" || e.Event == "replace") {
			seconds = e.Seconds
		}
	}
	if seconds == 0 {
		return 0, fmt.Errorf("no event says that %s was loaded", model)
	}
	return seconds, nil
}
