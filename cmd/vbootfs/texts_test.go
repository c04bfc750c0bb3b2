package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vbootfs/ggufview"
)

// evil are texts that mean something to what they might be written into.
var evil = []string{`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, "a\nstate loaded", "b\tF32\t1", "\x1b[31m\a", "{{.Name}}", "../../etc/passwd", `{"event":"load"}`}

// evilModel has these texts in every place of a model; with a fault its error names one of them.
func evilModel(t *testing.T, fault bool) string {
	t.Helper()
	s := &ggufview.Spec{KV: []ggufview.SpecKV{{Key: "general.architecture", Value: evil[0]}, {Key: "general.name", Value: evil[1]}}}
	for i, text := range evil {
		s.KV = append(s.KV, ggufview.SpecKV{Key: text, Value: text})
		s.Tensors = append(s.Tensors, ggufview.SpecTensor{Name: fmt.Sprintf("%d%s", i, text), Type: ggufview.F32, NE: []int64{32}})
		if fault {
			s.KV = append(s.KV, ggufview.SpecKV{Key: text, Value: text}) // twice
		}
	}
	b, err := s.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(tempDir(t), "evil.gguf")
	write(t, name, b)
	return name
}

func TestTextsOfModelsAreText(t *testing.T) {
	promise(t, security, "What a model says appears in lines and pages as text only: it adds no line, no field and no markup.")
	m := newMount(t, "none")
	m.put(evilModel(t, false), "a.gguf")
	lines := strings.Split(strings.TrimSuffix(m.of("a.gguf", "layout.tsv"), "\n"), "\n")
	if len(lines) != 1+len(evil) {
		t.Errorf("layout.tsv has %d lines", len(lines))
	}
	for _, line := range lines {
		if fields := strings.Split(line, "\t"); len(fields) != 5 {
			t.Errorf("%q has %d fields", line, len(fields))
		}
	}
	for _, name := range []string{"layout.json", "metadata.json"} {
		if !json.Valid([]byte(m.of("a.gguf", name))) {
			t.Errorf("%s is no JSON", name)
		}
	}
	for _, name := range []string{"report.html", "map.svg"} {
		for _, bad := range []string{"<script>alert", "<img src=x", "{{.Name}}\n<"} {
			if text := m.of("a.gguf", name); strings.Contains(text, bad) {
				t.Errorf("%s contains %s", name, bad)
			}
		}
	}
	m.terminal("a.gguf", "summary.txt", "error", "state")
	for _, dir := range []string{"metadata", "tensors"} {
		ents, err := os.ReadDir(m.boot("models/a.gguf/" + dir))
		if err != nil || len(ents) < len(evil) {
			t.Errorf("%s lists %d names, %v", dir, len(ents), err)
		}
	}
}

// terminal fails when a text would do something on a terminal.
func (m *mount) terminal(p string, names ...string) {
	m.t.Helper()
	for _, name := range names {
		if i := strings.IndexFunc(m.of(p, name), func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' }); i >= 0 {
			m.t.Errorf("%s has a control character at byte %d", name, i)
		}
	}
}

func TestTextsOfErrorsAreText(t *testing.T) {
	m := newMount(t, "none")
	if out, code := m.run("cp", evilModel(t, true), m.out("a.gguf")); code == 0 {
		t.Errorf("keys that come twice were accepted: %s", out)
	}
	text := m.of("a.gguf", "error")
	if strings.Count(text, "\n") > 1 || !strings.Contains(text, "at byte") {
		t.Errorf("error is %q", text)
	}
	m.terminal("a.gguf", "error")
	for _, line := range bytes.Split(bytes.TrimSpace(read(t, m.boot("events.log"))), []byte("\n")) {
		if !json.Valid(line) {
			t.Errorf("an event is no JSON: %s", line)
		}
	}
}
