package vectorboot

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
)

// wholeFile is the whole file of a model.
func wholeFile(t testing.TB, rt *Runtime, p string) []byte {
	t.Helper()
	g := rt.Acquire(p)
	if g == nil {
		t.Fatalf("%s is not loaded", p)
	}
	defer g.Release()
	return bytes.Clone(g.Bytes())
}

// setKey commits a value of a key.
func setKey(t testing.TB, rt *Runtime, key string, value any) {
	t.Helper()
	if err := rt.Commit("m.gguf", nil, []KeyEdit{{KeyEdit: ggufview.KeyEdit{Key: key, Value: value}}}); err != nil {
		t.Fatal(err)
	}
}

// told lists the generations in the history of m.gguf with what made them.
func told(rt *Runtime) (out []string) {
	for _, v := range rt.History("m.gguf") {
		out = append(out, fmt.Sprintf("%d %s %d", v.N, v.What, v.Bytes))
	}
	return out
}

func TestRollback(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	was := map[uint64][]byte{1: wholeFile(t, rt, "m.gguf")}
	next := func() { was[rt.Generation("m.gguf")] = wholeFile(t, rt, "m.gguf") }
	for i := range 3 {
		if err := commit(t, rt, "a", floats(float32(i), 0, 0, 0)); err != nil {
			t.Fatal(err)
		}
		next()
	}
	if err := commit(t, rt, "b", []byte("HGFEDCBA")); err != nil {
		t.Fatal(err)
	}
	next() // 5
	setKey(t, rt, "k", "another")
	next() // 6
	if err := commit(t, rt, "a", floats(9, 9, 9, 9)); err != nil {
		t.Fatal(err)
	}
	next() // 7
	size := len(was[5])
	want := []string{"1 load 16", "2 tensors/a 16", "3 tensors/a 16", "4 tensors/a 8", fmt.Sprintf("5 tensors/b %d", size), "6 metadata/k 16", "7 tensors/a 0"}
	if have := told(rt); strings.Join(have, ",") != strings.Join(want, ",") {
		t.Errorf("history %q, want %q", have, want)
	}
	for _, to := range []uint64{6, 2, 1, 7, 5, 8, 1, 4} {
		before := rt.Generation("m.gguf")
		if err := rt.Rollback("m.gguf", to); err != nil {
			t.Fatalf("rollback %d: %v", to, err)
		}
		if have := wholeFile(t, rt, "m.gguf"); !bytes.Equal(have, was[to]) || rt.Generation("m.gguf") != before+1 {
			t.Errorf("rollback %d in generation %d: content differs", to, before)
		}
		next()
	}
	for n, want := range map[uint64]error{rt.Generation("m.gguf"): unix.EINVAL, 99: unix.ENOENT, 0: unix.ENOENT} {
		if err := rt.Rollback("m.gguf", n); !errors.Is(err, want) {
			t.Errorf("rollback %d: %v, want %v", n, err, want)
		}
	}
}

func TestHistoryIsBounded(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	rt.SetHistory(2 * 4096) // two small commits
	for i := range 4 {
		if err := commit(t, rt, "a", floats(float32(i), 0, 0, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if have := strings.Join(told(rt), ","); have != "3 tensors/a 16,4 tensors/a 16,5 tensors/a 0" {
		t.Error(have)
	}
	if err := rt.Rollback("m.gguf", 3); err != nil { // drops what it comes from
		t.Fatal(err)
	}
	if have := tensor(t, rt, "a"); !bytes.Equal(have, floats(1, 0, 0, 0)) {
		t.Errorf("a is %v", have)
	}
	rt.SetHistory(1)
	setKey(t, rt, "k", "x") // nothing fits
	if have := strings.Join(told(rt), ","); have != "7 metadata/k 0" || rt.history.used != 0 {
		t.Error(have, rt.history.used)
	}
	rt.SetHistory(4 << 20)
	for range maxPast + 10 {
		if err := commit(t, rt, "a", floats(1, 2, 3, 4)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(rt.History("m.gguf")); n != maxPast+1 {
		t.Errorf("%d generations, want %d", n, maxPast+1)
	}
	rt.tell(rt.Remove("m.gguf"))
	if len(rt.history.all) != 0 || rt.history.used != 0 {
		t.Error("a removed model keeps history")
	}
}

// TestHistoryGivesWay: a commit that finds no room takes that of history.
func TestHistoryGivesWay(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	rt.SetHistory(1 << 40)
	for range 3 {
		if err := commit(t, rt, "a", floats(1, 2, 3, 5)); err != nil {
			t.Fatal(err)
		}
	}
	n := staged(t, rt, floats(5, 6, 7, 8))
	defer n.Close()
	hog := staged(t, rt, nil)
	defer hog.Close()
	fill(hog)
	if err := rt.Commit("m.gguf", []TensorEdit{{Name: "a", File: n}}, nil); err != nil {
		t.Fatal(err)
	}
	if have := tensor(t, rt, "a"); !bytes.Equal(have, floats(5, 6, 7, 8)) {
		t.Errorf("a is %v", have)
	}
	if have := rt.History("m.gguf"); len(have) > 2 { // the new one may have found room, the others are gone
		t.Errorf("history %v in a full store", have)
	}
}

// TestKeptSegmentsDoNotChange: what history keeps of one model may be the segment of another.
func TestKeptSegmentsDoNotChange(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	n, err := rt.Store().Live.Lookup("m.gguf")
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := rt.Store().Live.Link(n, "o.gguf"); err != nil {
		t.Fatal(err)
	}
	g, err := Judge(n)
	if err != nil {
		t.Fatal(err)
	}
	rt.tell(rt.Publish("o.gguf", g))
	before := wholeFile(t, rt, "m.gguf")
	setKey(t, rt, "k", "x") // m.gguf leaves the segment to o.gguf, and keeps it for rollback
	edit := staged(t, rt, floats(0, 0, 0, 0))
	defer edit.Close()
	if err := rt.Commit("o.gguf", []TensorEdit{{Name: "a", File: edit}}, nil); err != nil {
		t.Fatal(err)
	}
	if err := rt.Rollback("m.gguf", 1); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(wholeFile(t, rt, "m.gguf"), before) {
		t.Error("a commit to another model changed what was kept")
	}
}

func TestRollbackKeepsToThePolicy(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	if err := commit(t, rt, "a", floats(100, 0, 0, 0)); err != nil {
		t.Fatal(err)
	}
	if err := rt.SetPolicy("m.gguf", Policy{Forbid: []string{"a"}}); err != nil {
		t.Fatal(err)
	}
	if err := rt.Rollback("m.gguf", 1); !errors.Is(err, ErrRefused) {
		t.Errorf("a forbidden tensor: %v", err)
	}
	if err := rt.SetPolicy("m.gguf", Policy{MaxChange: 1e-9, RejectNaN: true}); err != nil {
		t.Fatal(err)
	}
	if err := rt.Rollback("m.gguf", 1); err != nil {
		t.Errorf("values that the model had: %v", err)
	}
}

func TestPersistNeedsASource(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	if err := rt.Persist("m.gguf"); !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "no SOURCE") {
		t.Errorf("%v", err)
	}
	if err := rt.Persist("none.gguf"); !errors.Is(err, ErrNoModel) {
		t.Errorf("%v", err)
	}
}
