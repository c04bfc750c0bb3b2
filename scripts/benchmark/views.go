package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"vbootfs/ggufview"
)

// views reads tensors as files, each time nothing of them being cached.
func (b *bench) views() error {
	m, err := b.main()
	if err != nil {
		return err
	}
	d, err := b.daemon()
	if err != nil {
		return err
	}
	values := int64(128<<20) / 4 // of the tensor that is read
	if b.quick {
		values /= 8
	}
	for _, t := range []struct {
		kind     ggufview.Type
		function string // of ggml
	}{
		{ggufview.F16, "ggml_fp16_to_fp32_row"},
		{ggufview.Q8_0, "dequantize_row_q8_0"},
		{ggufview.Q4_K, "dequantize_row_q4_K"},
		{ggufview.Q6_K, "dequantize_row_q6_K"},
		{ggufview.Q4_0, "dequantize_row_q4_0"},
	} {
		if err := b.viewRows(m, d, t.kind, values, t.function); err != nil {
			return err
		}
	}
	return nil
}

// tensorFile is a tensor of a model that is loaded.
type tensorFile struct {
	model, file string // name in the mount, and what it was copied from
	name, dir   string
	nbytes      int64
}

func (b *bench) viewRows(m, d *mount, kind ggufview.Type, values int64, function string) error {
	t, err := b.tensor(m, kind, values)
	if err != nil {
		return err
	}
	defer os.Remove(m.Out(t.model))
	f32 := filepath.Join(t.dir, "f32")
	st, err := os.Stat(f32)
	if err != nil {
		return err
	}
	size := st.Size()
	plain, err := d.plain("plain-f32", size)
	if err != nil {
		return err
	}
	stored, err := d.plain("plain-data", t.nbytes)
	if err != nil {
		return err
	}
	defer os.Remove(plain)
	defer os.Remove(stored)
	fresh := func(name string) func() ([]float64, error) { return opened(name, true, loop(1<<20)) }
	ours := side{"read 1M, first time", fresh(f32)}
	name := "f32 of " + kind.String()
	return errors.Join(
		b.compare(pair{name: name, bytes: size, goal: 3, ours: ours,
			theirs: side{"gguf-py dequantize", func() ([]float64, error) { return b.ask("dequantize", t.file, t.name) }}}),
		b.compare(pair{name: name, bytes: size, ours: ours,
			theirs: side{function + ", 1 thread, in memory", func() ([]float64, error) {
				return b.ask("ggml_dequantize", t.file, t.name, function)
			}}}),
		b.compare(pair{name: name, bytes: size, goal: 0.7, ours: ours,
			theirs: side{"a plain file through the daemon", fresh(plain)}}),
		b.compare(pair{name: "data of " + kind.String(), bytes: t.nbytes, goal: 0.7,
			ours:   side{"read 1M, first time", fresh(filepath.Join(t.dir, "data"))},
			theirs: side{"a plain file through the daemon", fresh(stored)}}))
}

// tensor loads a model whose largest tensor has about so many values.
func (b *bench) tensor(m *mount, kind ggufview.Type, values int64) (tensorFile, error) {
	t := tensorFile{model: kind.String() + ".gguf"}
	var err error
	// The largest of a layer's matrices has a fifth of the values.
	bytes := values * 5 / int64(kind.BlockElements()) * int64(kind.BlockBytes())
	if t.file, err = b.model(kind.String(), ggufview.Gen{Bytes: bytes, Layers: 1, Tokens: 300, Type: kind}); err != nil {
		return t, err
	}
	if err := m.load(t.file, t.model); err != nil {
		return t, err
	}
	text, err := os.ReadFile(m.Of(t.model, "layout.tsv"))
	if err != nil {
		return t, err
	}
	for l := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSpace(l), "\t")
		if n, err := strconv.ParseInt(f[len(f)-1], 10, 64); err == nil && n > t.nbytes {
			t.name, t.nbytes = f[0], n
		}
	}
	if t.nbytes == 0 {
		return t, fmt.Errorf("%s has no tensors", t.model)
	}
	t.dir = m.Of(t.model, filepath.Join("tensors", t.name))
	return t, nil
}

// plain is a file that is no model.
func (m *mount) plain(name string, size int64) (string, error) {
	f, err := os.Create(m.Out(name))
	if err != nil {
		return "", err
	}
	buf := make([]byte, 1<<20)
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	for at := int64(0); at < size && err == nil; at += int64(len(buf)) {
		_, err = f.Write(buf[:min(int64(len(buf)), size-at)])
	}
	return f.Name(), errors.Join(err, f.Close())
}
