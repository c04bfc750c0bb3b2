package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// Real programs take the whole of a split model for one file.
func TestShardsAreOneModel(t *testing.T) {
	quote(t, "whole model, beside a directory for each file.",
		"While a file of the set is missing or refused, `state` of the whole is `failed` and `error` names it.")
	py := python(t)
	shards, err := filepath.Glob("testdata/shards/*.gguf")
	if err != nil || len(shards) != 3 {
		t.Fatalf("the three files of the split model: %v %v", shards, err)
	}
	m := newMount(t, "none")
	p := strings.Split(filepath.Base(shards[0]), "-00001-")[0] + ".gguf"
	for i := len(shards) - 1; i >= 0; i-- { // the first one last
		m.put(shards[i], filepath.Base(shards[i]))
		if i > 0 {
			m.expect(p, "state", "failed")
			if reason := m.of(p, "error"); !strings.Contains(reason, filepath.Base(shards[0])) {
				t.Errorf("the reason is %q", reason)
			}
		}
	}
	m.expect(p, "state", "loaded")
	whole := m.boot("models/" + p + "/model.gguf")
	must(t, py, append([]string{"testdata/shards.py", whole}, shards...)...)
	want := must(t, py, "testdata/generate.py", shards[0])
	for _, name := range []string{whole, m.out(filepath.Base(shards[0]))} {
		if have := must(t, py, "testdata/generate.py", name); have != want || len(want) < 16 {
			t.Errorf("llama.cpp generated %q from %s, want %q", have, name, want)
		}
	}
}
