package tree

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"

	"vbootfs/ggufview"
	"vbootfs/shm"
	"vbootfs/vectorboot"
)

// start makes a runtime without models.
func start(t testing.TB) *vectorboot.Runtime {
	t.Helper()
	store, err := shm.Open(shm.Config{ID: "tree", Base: t.TempDir(), Limit: 1 << 28})
	if err != nil {
		t.Fatal(err)
	}
	rt := vectorboot.New(store, nil)
	t.Cleanup(func() {
		rt.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return rt
}

// load makes bytes a model, as the mount does at close.
func load(t testing.TB, rt *vectorboot.Runtime, p string, b []byte) {
	t.Helper()
	dir, err := rt.Store().Live.Dup()
	for _, name := range strings.Split(path.Dir(p), "/") {
		if name != "." && err == nil {
			dir, err = dir.Mkdir(name, 0o755, nil)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	n, err := dir.Create(path.Base(p), 0o644, nil)
	if err == nil {
		_, err = n.WriteAt(b, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	g, err := vectorboot.Judge(n)
	if err != nil {
		t.Fatal(err)
	}
	rt.Publish(p, g)
}

// built is the bytes of a model.
func built(t *testing.T, s ggufview.Spec) []byte {
	t.Helper()
	b, err := s.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// noise is n bytes that are always the same.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// hostile has names that no directory can hold.
func hostile() (s ggufview.Spec) {
	for _, name := range []string{"", ".", "..", "a/b", "../up", "nul\x00", "\xff", "%", "%2F", "a\nb", "*?-", strings.Repeat("é/", 150)} {
		s.Tensors = append(s.Tensors, ggufview.SpecTensor{Name: name, Type: ggufview.I8, NE: []int64{4}, Data: noise(4)})
		s.KV = append(s.KV, ggufview.SpecKV{Key: cmp.Or(name, "k"), Value: name})
	}
	return s
}

func adapter(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile("../../ggufview/testdata/lora-adapter.gguf")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// In a bubble no time passes, so that files which show it can be compared.
func TestFS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := start(t)
		load(t, rt, "hostile.gguf", built(t, hostile()))
		load(t, rt, "sub/dir/adapter.gguf", adapter(t))
		s := sample()
		s.BigEndian = true
		load(t, rt, "big.gguf", built(t, s))
		for i, b := range shards(t) {
			load(t, rt, fmt.Sprintf("many-%05d-of-00002.gguf", i+1), b)
		}
		err := fstest.TestFS(FS{rt}, "README", "models/sub/dir/adapter.gguf/tensors", "models/hostile.gguf/metadata/a%2Fb",
			"models/hostile.gguf/tensors/%/data", "models/hostile.gguf/tensors/%2E%2E/raw.npy", "models/big.gguf/tensors/q/f32.npy",
			"models/many.gguf/model.gguf", "models/many.gguf/tensors/norm/f32", "models/many.gguf/report.html")
		if err != nil {
			t.Fatal(err)
		}
	})
}

// What cannot be a name is found under its file name only.
func TestHostileNames(t *testing.T) {
	rt := start(t)
	s := hostile()
	load(t, rt, "a.gguf", built(t, s))
	for _, want := range s.KV {
		if got := text(t, rt, "models/a.gguf/metadata/"+escape(want.Key)); got != want.Value {
			t.Errorf("key %q has the value %q", want.Key, got)
		}
	}
	for _, name := range []string{"%25k", "%2f", "%61%2Fb", strings.Repeat("é/", 150), "b", "%~0000000000000000"} {
		if _, err := fs.Stat(FS{rt}, "models/a.gguf/tensors/"+name); err == nil {
			t.Errorf("there is a tensor %q", name)
		}
	}
	for _, dir := range []string{"metadata", "tensors"} {
		ents, err := fs.ReadDir(FS{rt}, "models/a.gguf/"+dir)
		if err != nil || len(ents) != len(s.KV) {
			t.Errorf("%s has %d names: %v", dir, len(ents), err)
		}
	}
}

// Looking computes nothing, and brings nothing into memory.
func TestLookingCostsNothing(t *testing.T) {
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "c.gguf"), built(t, sample()), 0o644); err != nil {
		t.Fatal(err)
	}
	rt := cold(t, source)
	err := fs.WalkDir(FS{rt}, ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil {
			_, err = FS{rt}.Lstat(p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	state := func() string { return text(t, rt, "models/c.gguf/state") }
	text(t, rt, "models/c.gguf/tensors/q/type")
	text(t, rt, "models/c.gguf/summary.txt")
	if s := state(); s != "cold\n" {
		t.Errorf("after a walk the model is %s", s)
	}
	g := rt.Acquire("c.gguf")
	defer g.Release()
	for i := range g.Info.NumTensors() {
		asked := tensorStats{i}
		if v, _ := g.Once(asked, func() (any, error) { return nil, nil }); v != nil {
			t.Errorf("a walk began the statistics of tensor %d", i)
		}
	}
	want := built(t, sample())
	if got := text(t, rt, "models/c.gguf/tensors/q/data"); got != string(want[g.Info.TensorAt(0).Offset:][:len(got)]) {
		t.Error("the data of a cold model is not what SOURCE has")
	}
	if s := state(); s != "loaded\n" {
		t.Errorf("after a read the model is %s", s)
	}
}

// cold is a runtime over a directory whose bytes nobody has asked for yet.
func cold(t *testing.T, dir string) *vectorboot.Runtime {
	t.Helper()
	store, err := shm.Open(shm.Config{ID: "cold", Base: t.TempDir(), Limit: 1 << 28})
	if err != nil {
		t.Fatal(err)
	}
	source, err := vectorboot.OpenSource(dir, store, false)
	if err != nil {
		t.Fatal(err)
	}
	rt := vectorboot.New(store, source)
	t.Cleanup(func() {
		rt.Close()
		if err := source.Close(); err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := source.Start(store.Attached); err != nil {
		t.Fatal(err)
	}
	if err := rt.Recover(); err != nil {
		t.Fatal(err)
	}
	return rt
}

// text is the content of a file of the tree.
func text(t *testing.T, rt *vectorboot.Runtime, name string) string {
	t.Helper()
	b, err := fs.ReadFile(FS{rt}, name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestReadmeIsOnePage(t *testing.T) {
	rt := start(t)
	readme := text(t, rt, "README")
	lines := strings.Split(strings.TrimSuffix(readme, "\n"), "\n")
	if len(lines) > 40 {
		t.Errorf("%d lines", len(lines))
	}
	for _, l := range lines {
		if len(l) > 80 {
			t.Errorf("%d columns: %s", len(l), l)
		}
	}
	for _, rows := range [][]*Row{root.Rows[1].Rows, modelRow.Rows, tensorRow.Rows} {
		for _, r := range rows {
			if !strings.Contains(readme, r.Name) {
				t.Errorf("the README has no %s", r.Name)
			}
		}
	}
}

// A reader that leaves ends what only it waited for, and nothing else.
func TestWorkEndsWithItsReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := start(t)
		load(t, rt, "a.gguf", built(t, sample()))
		g := rt.Acquire("a.gguf")
		defer g.Release()
		ended := false
		v := newKept(g, "key", 1, func(ctx context.Context) (ggufview.View, error) {
			<-ctx.Done()
			ended = true
			return nil, ctx.Err()
		})
		errs := make(chan error, 2)
		read := func() context.CancelFunc {
			ctx, cancel := context.WithCancel(t.Context())
			go func() { _, err := v.ReadAtContext(ctx, make([]byte, 1), 0); errs <- err }()
			return cancel
		}
		one, two := read(), read()
		synctest.Wait()
		if one(); <-errs != context.Canceled {
			t.Error("the first reader did not get away")
		}
		if synctest.Wait(); ended {
			t.Error("the work ended though somebody waits")
		}
		if two(); <-errs != context.Canceled {
			t.Error("the second reader did not get away")
		}
		if synctest.Wait(); !ended {
			t.Error("the work goes on for nobody")
		}
	})
}
