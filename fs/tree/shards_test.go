package tree

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vbootfs/ggufview"
)

// shards is sample in two files.
func shards(t *testing.T) [][]byte {
	t.Helper()
	split := func(no int) []ggufview.SpecKV {
		return []ggufview.SpecKV{{Key: "split.no", Value: uint16(no)}, {Key: "split.count", Value: uint16(2)}, {Key: "split.tensors.count", Value: int32(6)}}
	}
	first, second := sample(), ggufview.Spec{KV: split(1)}
	first.KV = append(first.KV, split(0)...)
	first.Tensors, second.Tensors = first.Tensors[:1], first.Tensors[1:]
	return [][]byte{built(t, first), built(t, second)}
}

// The whole shows every view as one file with all the tensors does.
func TestShardsAreOneModel(t *testing.T) {
	rt, s := sampled(t)
	s.KV = append(s.KV, ggufview.SpecKV{Key: "split.no", Value: uint16(0)}, ggufview.SpecKV{Key: "split.tensors.count", Value: int32(6)},
		ggufview.SpecKV{Key: "split.count", Value: uint16(0)})
	load(t, rt, "one.gguf", built(t, s))
	for i, b := range shards(t) {
		load(t, rt, []string{"m-00001-of-00002.gguf", "m-00002-of-00002.gguf"}[i], b)
	}
	compared := 0
	err := fs.WalkDir(FS{rt}, "models/m.gguf", func(p string, d fs.DirEntry, err error) error {
		rest := strings.TrimPrefix(p, "models/m.gguf/")
		if err != nil || d.IsDir() || slices.Contains([]string{"layout.json", "generation", "map.svg", "report.html", "hashes.manifest"}, rest) {
			return err
		}
		compared++
		if got, want := text(t, rt, p), text(t, rt, "models/one.gguf/"+rest); got != want && rest != "ctl" {
			t.Errorf("%s differs:\n%.300q\n%.300q", rest, got, want)
		}
		return nil
	})
	if err != nil || compared < 60 {
		t.Errorf("%d files compared: %v", compared, err)
	}
	layout := text(t, rt, "models/m.gguf/layout.json")
	if !strings.Contains(layout, `"segment":{"path":null,`) || !strings.Contains(layout, `"generation":2,`) {
		t.Errorf("layout.json is %.300s", layout)
	}
	if page := text(t, rt, "models/m.gguf/report.html"); !strings.Contains(page, "<td>m-00002-of-00002.gguf</td>") {
		t.Error("the page names no shards")
	}
	for _, name := range []string{"control", "wait", "session", "sessions", "policy", "drafts"} {
		if _, err := (FS{rt}).walk("lookup", "models/m.gguf/"+name); err == nil {
			t.Errorf("there is a file %s", name)
		}
	}
}

// The whole gives no more permission than each of its files.
func TestShardsNarrowPermissions(t *testing.T) {
	rt := start(t)
	names := []string{"m-00001-of-00002.gguf", "m-00002-of-00002.gguf"}
	for i, b := range shards(t) {
		load(t, rt, names[i], b)
	}
	for _, c := range []struct {
		mode     uint32
		uid      int
		want     fs.FileMode
		wantData fs.FileMode
	}{{0o644, 0, 0o444, 0o644}, {0o600, 0, 0o400, 0o600}, {0o644, 7, 0o044, 0o044}} {
		n, err := rt.Store().Live.Walk(names[1])
		if err == nil {
			err = n.Chmod(c.mode)
		}
		if err == nil {
			err = n.Chown(c.uid, 0)
		}
		if err != nil {
			t.Fatalf("run the tests as root: %v", err)
		}
		n.Close()
		for name, want := range map[string]fs.FileMode{"model.gguf": c.want, "state": c.want, "tensors/norm/data": c.wantData} {
			info, err := fs.Stat(FS{rt}, "models/m.gguf/"+name)
			if err != nil || info.Mode() != want {
				t.Errorf("%o by %d: %s has mode %o, want %o: %v", c.mode, c.uid, name, info.Mode(), want, err)
			}
		}
	}
}

// Shards that are still in SOURCE are a whole to look at; reading brings them in.
func TestColdShards(t *testing.T) {
	source := t.TempDir()
	for i, b := range shards(t) {
		if err := os.WriteFile(filepath.Join(source, fmt.Sprintf("m-%05d-of-00002.gguf", i+1)), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	rt := cold(t, source)
	state := func(want string) {
		t.Helper()
		if got := text(t, rt, "models/m.gguf/state"); got != want+"\n" {
			t.Errorf("the whole is %s, want %s", got, want)
		}
	}
	text(t, rt, "models/m.gguf/map.svg")
	text(t, rt, "models/m.gguf/metadata.json")
	state("cold")
	if got := text(t, rt, "models/m.gguf/tensors/q/data"); got != string(sample().Tensors[0].Data) {
		t.Errorf("q has the bytes %.20q", got)
	}
	state("loaded")
	if err := rt.Evict("m.gguf"); err != nil {
		t.Fatal(err)
	}
	state("cold")
	if err := rt.Load(t.Context(), "m.gguf"); err != nil {
		t.Fatal(err)
	}
	state("loaded")
}
