package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestViewsEqualReference compares every view of every tensor with gguf-py,
// NumPy and safetensors.
func TestViewsEqualReference(t *testing.T) {
	m := newMount(t, "none")
	all := models(t)
	for _, name := range all {
		m.put(name, filepath.Base(name))
	}
	must(t, python(t), append([]string{"../../fs/testdata/views_oracle.py", m.dir}, all...)...)
}

// TestToolsThatWalkTheTree end, copy something usable, and change nothing.
func TestToolsThatWalkTheTree(t *testing.T) {
	m := newMount(t, "none")
	m.put(makeModel(t, "1M", 1), "a.gguf")
	must(t, "mkdir", m.out("sub"))
	m.put(makeModel(t, "1M", 2), "sub/b.gguf")
	must(t, "mkdir", m.boot("models/a.gguf/drafts/d"))
	log := func() string { return string(read(t, m.boot("events.log"))) }
	before := log()
	to := tempDir(t)
	for _, script := range []string{
		`cp -r "$0/vector_boot/models/a.gguf" "$1/cp"`,
		`find "$0" -type f -size +0 >/dev/null`,
		`du -a "$0" >/dev/null`,
		`grep -r -c llama "$0" >/dev/null`,
		`tar cf "$1/t.tar" -C "$0" .`,
		`rsync -a "$0/" "$1/rsync/"`,
		`ls -lR "$0" >/dev/null`,
	} {
		must(t, "sh", "-c", script, m.dir, to)
	}
	same(t, filepath.Join(to, "cp/model.gguf"), read(t, m.out("a.gguf")))
	same(t, filepath.Join(to, "rsync/vector_boot/models/sub/b.gguf/model.gguf"), read(t, m.out("sub/b.gguf")))
	for _, name := range []string{"layout.json", "metadata/general.architecture", "tensors/output.weight/f32.npy", "model.safetensors"} {
		same(t, filepath.Join(to, "cp", name), read(t, m.boot("models/a.gguf/"+name)))
	}
	if after := log(); after != before {
		t.Errorf("looking changed something:\n%s", strings.TrimPrefix(after, before))
	}
	m.expect("a.gguf", "generation", "1")
	if err := os.Remove(m.boot("models/a.gguf/drafts/d")); err != nil {
		t.Error(err)
	}
}
