package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// versions lists the generations that models/P/history has.
func (m *mount) versions(p string) string {
	m.t.Helper()
	var out []string
	for _, line := range strings.Split(strings.TrimSpace(m.of(p, "history")), "\n")[1:] {
		n, _, _ := strings.Cut(line, "\t")
		out = append(out, n)
	}
	return strings.Join(out, " ")
}

// fillTensor changes a tensor to nothing but one byte.
func (m *mount) fillTensor(p, name string, b byte) {
	m.t.Helper()
	file := m.boot(filepath.Join("models", p, "tensors", name, "data"))
	write(m.t, file, []byte(strings.Repeat(string(rune(b)), len(read(m.t, file)))))
}

func TestPublish(t *testing.T) {
	quote(t, "`publish` returns when SOURCE has the model, as `fsync()` of the file and of its directory does.")
	source := tempDir(t)
	m := newMount(t, source)
	m.put(makeModel(t, "1M", 1), "a.gguf")
	for i := range 3 {
		m.fillTensor("a.gguf", "output.weight", byte(i))
		write(t, m.boot("models/a.gguf/ctl"), []byte("publish"))
		same(t, filepath.Join(source, "a.gguf"), read(t, m.out("a.gguf")))
	}
	write(t, m.boot("models/a.gguf/ctl"), []byte("rollback 2"))
	write(t, m.boot("models/a.gguf/ctl"), []byte("publish"))
	m.kill()
	m.reboot()
	m.start(source)
	if b := read(t, m.boot("models/a.gguf/tensors/output.weight/data")); strings.Trim(string(b), "\x00") != "" {
		t.Error("what was published is not what generation 2 was")
	}
}

func TestHistoryEndsWithTheDaemon(t *testing.T) {
	quote(t, "Evicting or removing a model forgets its history, and so does the end of the daemon, also by a kill.")
	m := newMount(t, tempDir(t))
	m.put(makeModel(t, "1M", 1), "a.gguf")
	m.fillTensor("a.gguf", "output.weight", 1)
	m.put(makeModel(t, "1M", 2), "a.gguf")
	m.fillTensor("a.gguf", "output.weight", 2)
	if have := m.versions("a.gguf"); have != "1 2 3 4" {
		t.Errorf("history %q", have)
	}
	want := read(t, m.out("a.gguf"))
	write(t, m.boot("ctl"), []byte("sync"))
	source := strings.TrimSpace(must(t, "findmnt", "-no", "SOURCE", m.dir))
	m.kill()
	m.start(source)
	if have := m.versions("a.gguf"); have != "4" {
		t.Errorf("after a kill history has %q", have)
	}
	if err := os.WriteFile(m.boot("models/a.gguf/ctl"), []byte("rollback 3"), 0); !os.IsNotExist(err) {
		t.Errorf("rollback to what is not kept: %v", err)
	}
	same(t, m.out("a.gguf"), want)
	m.fillTensor("a.gguf", "output.weight", 3)
	write(t, m.boot("models/a.gguf/ctl"), []byte("evict"))
	if have := m.versions("a.gguf"); have != "5" {
		t.Errorf("after an eviction history has %q", have)
	}
}

func TestHistoryOption(t *testing.T) {
	quote(t, "The mount option `history=BYTES` bounds what is kept of all models together, by default a 16th of `size=`; 0 keeps nothing.")
	for limit, want := range map[string]string{"0": "5", "8K": "3 4 5", "1M": "1 2 3 4 5"} {
		m := newMount(t, "none", "history="+limit)
		m.put(tinyModel, "a.gguf")
		for i := range 4 {
			m.fillTensor("a.gguf", "output_norm.weight", byte(i))
		}
		if have := m.versions("a.gguf"); have != want {
			t.Errorf("history=%s keeps %q, want %q", limit, have, want)
		}
		m.stop()
	}
	if out, code := output(t, exec.Command(binary, "none", tempDir(t), "-o", "history=much")); code != 1 || !strings.Contains(out, "not a size") {
		t.Errorf("exit code %d: %s", code, out)
	}
}
