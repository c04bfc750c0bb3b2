package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// llama runs a tool of llama.cpp that has to work, in a directory, and returns
// what it wrote to standard output.
func llama(t testing.TB, dir, tool string, args ...string) string {
	t.Helper()
	tools := os.Getenv("VBOOTFS_LLAMA_TOOLS")
	if tools == "" {
		t.Fatal("VBOOTFS_LLAMA_TOOLS is not set; scripts/llama-tools prints the directory")
	}
	cmd := exec.Command(filepath.Join(tools, "llama-"+tool), args...)
	var said strings.Builder
	cmd.Dir, cmd.Stderr = dir, &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("llama-%s %v: %v: %s", tool, args, err, said.String())
	}
	return string(out)
}

func TestManifestIsLlamaHashs(t *testing.T) {
	quote(t, "**hashes.manifest** has xxh64 and sha256 of every tensor and of all together, as llama-gguf-hash prints them.")
	m := newMount(t, "none")
	for _, from := range models(t) {
		p := filepath.Base(from)
		if strings.Contains(p, "bigendian") {
			continue // llama.cpp reads them on such machines only
		}
		t.Run(p, func(t *testing.T) {
			m.put(from, p)
			dir := m.boot("models/" + p)
			if have, want := m.of(p, "hashes.manifest"), llama(t, dir, "gguf-hash", "--xxh64", "--sha256", "model.gguf"); have != want {
				t.Errorf("it is\n%swant\n%s", have, want)
			}
			llama(t, dir, "gguf-hash", "--check", "hashes.manifest", "model.gguf")
		})
	}
}

// TestWholeModelIsWhatSplitMerges: the files of a set are written into the mount
// by gguf-split itself.
func TestWholeModelIsWhatSplitMerges(t *testing.T) {
	quote(t, "Its `model.gguf` is the file that `gguf-split --merge` would write, computed when it is read, without a second copy.")
	m := newMount(t, "none")
	for p, c := range map[string]struct {
		from string
		by   string // tensors of a file
	}{
		"tiny":  {tinyModel, "7"},
		"each":  {tinyModel, "1"},
		"large": {makeModel(t, "4M", 1), "5"},
	} {
		t.Run(p, func(t *testing.T) {
			llama(t, ".", "gguf-split", "--split", "--split-max-tensors", c.by, c.from, m.out(p))
			first, err := filepath.Glob(m.out(p) + "-00001-of-*.gguf")
			if err != nil || len(first) != 1 {
				t.Fatalf("first files: %v %v", first, err)
			}
			merged := filepath.Join(tempDir(t), "merged.gguf")
			llama(t, ".", "gguf-split", "--merge", first[0], merged)
			want := read(t, merged)
			m.expect(p+".gguf", "state", "loaded")
			same(t, m.boot("models/"+p+".gguf/model.gguf"), want)
			llama(t, m.dir, "gguf-split", "--merge", first[0], m.out(p+"-merged.gguf"))
			m.holds(p+"-merged.gguf", want)
		})
	}
}

// TestQuantizeInTheMount: it reads from it, and writes zeros first and the header
// last.
func TestQuantizeInTheMount(t *testing.T) {
	m := newMount(t, "none")
	m.put(tinyModel, "f16.gguf")
	plain := tempDir(t)
	for _, kind := range []string{"Q8_0", "Q4_0"} {
		t.Run(kind, func(t *testing.T) {
			want := filepath.Join(plain, kind+".gguf")
			llama(t, ".", "quantize", tinyModel, want, kind, "1")
			llama(t, ".", "quantize", m.out("f16.gguf"), m.out(kind+".gguf"), kind, "1")
			m.holds(kind+".gguf", read(t, want))
			// Over a model that is loaded and has readers.
			m.put(tinyModel, "over.gguf")
			reader, err := os.Open(m.out("over.gguf"))
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			llama(t, ".", "quantize", m.boot("models/f16.gguf/model.gguf"), m.out("over.gguf"), kind, "1")
			m.holds("over.gguf", read(t, want))
			if old, err := io.ReadAll(reader); err != nil || !bytes.Equal(old, read(t, tinyModel)) {
				t.Errorf("the reader of the old model has %d other bytes: %v", len(old), err)
			}
		})
	}
}
