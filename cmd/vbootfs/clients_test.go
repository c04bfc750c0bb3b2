package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

// layoutOf is what the tests need of models/P/layout.json.
type layoutOf struct {
	Generation uint64 `json:"generation"`
	FileBytes  int64  `json:"file_bytes"`
	Segment    struct {
		Path string `json:"path"`
	} `json:"segment"`
	Tensors []struct {
		Name   string `json:"name"`
		Offset int64  `json:"offset"`
		Bytes  int64  `json:"nbytes"`
	} `json:"tensors"`
}

func (m *mount) layout(p string) (l layoutOf) {
	m.t.Helper()
	if err := json.Unmarshal([]byte(m.of(p, "layout.json")), &l); err != nil {
		m.t.Errorf("models/%s/layout.json: %v", p, err)
	}
	return l
}

// holds checks that a model is loaded with exactly these bytes, wherever it is read.
func (m *mount) holds(p string, want []byte) {
	m.t.Helper()
	m.expect(p, "state", "loaded")
	l := m.layout(p)
	if l.FileBytes != int64(len(want)) {
		m.t.Errorf("file_bytes of %s is %d, want %d", p, l.FileBytes, len(want))
	}
	same(m.t, m.out(p), want)
	same(m.t, m.boot("models/"+p+"/model.gguf"), want)
	same(m.t, l.Segment.Path, want)
}

func TestModelsAreExact(t *testing.T) {
	quote(t, "Numbers are exact: a float32 is printed as the double it equals.", "NaN, Infinity and -Infinity are strings.")
	py := python(t)
	m := newMount(t, "none")
	names := models(t)
	for _, from := range names {
		t.Run(filepath.Base(from), func(t *testing.T) {
			m.put(from, filepath.Base(from))
			m.holds(filepath.Base(from), read(t, from))
		})
	}
	args := append([]string{"testdata/oracle.py", m.boot("models")}, names...)
	if out, code := m.run(py, args...); code != 0 {
		t.Errorf("gguf-py reads the originals differently:\n%s", out)
	}
}

func TestStandardLibraryMapsTensors(t *testing.T) {
	m := newMount(t, "none")
	for _, from := range models(t) {
		p := filepath.Base(from)
		m.put(from, p)
		// -I -S: nothing installed can be imported.
		if out, code := m.run("python3", "-I", "-S", "testdata/stdlib.py", m.boot(""), p, from); code != 0 {
			t.Errorf("%s: %s", p, out)
		}
	}
}

func TestLlamaCppGeneratesTheSame(t *testing.T) {
	py := python(t)
	from := tinyModel
	m := newMount(t, "none")
	m.put(from, "a.gguf")
	want := must(t, py, "testdata/generate.py", from)
	if !strings.HasPrefix(want, "mapped\n") || len(want) < len("mapped\n''\n")+8 {
		t.Fatalf("llama.cpp generated %q from the plain file", want)
	}
	for _, name := range []string{m.out("a.gguf"), m.boot("models/a.gguf/model.gguf"), m.layout("a.gguf").Segment.Path} {
		if have := must(t, py, "testdata/generate.py", name); have != want {
			t.Errorf("llama.cpp generated %q from %s, want %q", have, name, want)
		}
	}
}

// TestQuickstart runs what the README says first.
func TestQuickstart(t *testing.T) {
	out := must(t, "../../scripts/quickstart")
	if !strings.HasSuffix(out, "Nothing is left: no mount, no segment, no process.\n") || strings.Count(out, "\nsame bytes\n") != 2 {
		t.Errorf("it said:\n%s", out)
	}
}
