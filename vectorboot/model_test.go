package vectorboot

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"vbootfs/ggufview"
)

// known is what a model is in the reference: every generation that it ever had
// under its name, the current one last.
type known struct {
	n   uint64 // number of the last
	all []string
}

func (k *known) next(b string) { k.n++; k.all = append(k.all, b) }

func (k *known) now() string { return k.all[len(k.all)-1] }

// first is the number of the oldest.
func (k *known) first() uint64 { return k.n + 1 - uint64(len(k.all)) }

// walk runs random operations on a runtime and on the reference.
type walk struct {
	t   *testing.T
	rt  *Runtime
	ref map[string]*known
	i   int // makes contents differ
}

var walkNames = []string{"m.gguf", "n.gguf", "o.gguf"}

func (w *walk) name(t *rapid.T, what string) (string, *known) {
	p := rapid.SampledFrom(walkNames).Draw(t, what)
	return p, w.ref[p]
}

// The operations are the same every time; -rapid.seed and -rapid.checks give others.
func init() {
	for name, value := range map[string]string{"rapid.seed": "1", "rapid.nofailfile": "true"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
}

func TestRuntimeAgainstReference(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	rt.SetHistory(32 << 20)
	rapid.Check(t, func(rp *rapid.T) {
		w := &walk{t: t, rt: rt, ref: map[string]*known{}}
		w.clear(rp)
		rp.Repeat(map[string]func(*rapid.T){
			"load": w.load, "commit": w.commit, "key": w.key, "rollback": w.rollback,
			"rename": w.rename, "remove": w.remove, "link": w.link, "draft": w.draft, "": w.check,
		})
		w.clear(rp)
	})
}

// clear removes every model, also those of a run that failed.
func (w *walk) clear(t *rapid.T) {
	for _, p := range walkNames {
		if w.rt.Known(p) {
			unlink(w.t, w.rt, p)
		}
	}
	if h := &w.rt.history; h.used != 0 || len(h.all) > 0 {
		t.Fatalf("history of nothing: %d bytes", h.used)
	}
}

func (w *walk) load(t *rapid.T) {
	p, k := w.name(t, "name")
	if k == nil {
		load(w.t, w.rt, p)
		w.ref[p] = &known{}
		w.ref[p].next(string(modelBytes(w.t)))
		return
	}
	load2(w.t, w.rt, p)
	k.next(string(modelBytes(w.t)))
}

// with is the content of a model after a tensor got other bytes.
func (w *walk) with(b, tensor string, data []byte) string {
	f, err := ggufview.Parse([]byte(b), int64(len(b)))
	if err != nil {
		w.t.Fatal(err)
	}
	x, _ := f.Tensor(tensor)
	out := []byte(b)
	copy(out[x.Offset:], data)
	return string(out)
}

func (w *walk) data(t *rapid.T) (tensor string, b []byte) {
	w.i++
	if rapid.Bool().Draw(t, "tensor b") {
		return "b", fmt.Appendf(nil, "%08d", w.i)
	}
	return "a", fmt.Appendf(nil, "%016d", w.i)
}

func (w *walk) commit(t *rapid.T) {
	p, k := w.name(t, "name")
	name, b := w.data(t)
	n := staged(w.t, w.rt, b)
	defer n.Close()
	err := w.rt.Commit(p, []TensorEdit{{Name: name, File: n}}, nil)
	if k == nil {
		wants(t, err, ErrNoModel)
		return
	}
	wants(t, err, nil)
	k.next(w.with(k.now(), name, b))
}

// draft commits two tensors, unless one was changed since it was staged.
func (w *walk) draft(t *rapid.T) {
	p, k := w.name(t, "name")
	if k == nil {
		wants(t, w.rt.NewDraft(p, "d"), ErrNoModel)
		return
	}
	wants(t, w.rt.NewDraft(p, "d"), nil)
	d := w.rt.Draft(p, "d")
	a, b := bytes.Repeat([]byte{'x'}, 16), bytes.Repeat([]byte{'y'}, 8)
	wants(t, d.Stage("a", staged(w.t, w.rt, a), w.rt.Generation(p)), nil)
	wants(t, d.Stage("b", staged(w.t, w.rt, b), w.rt.Generation(p)), nil)
	if rapid.Bool().Draw(t, "somebody else is faster") {
		w.rollbackOf(t, p, k)
		if k.n > w.rt.Generation(p) {
			t.Fatal("generations")
		}
	}
	err := d.Commit(p)
	if len(d.Staged()) == 0 {
		wants(t, err, nil)
		k.next(w.with(w.with(k.now(), "a", a), "b", b))
	} else {
		wants(t, err, ErrConflict)
	}
	wants(t, w.rt.Abort(p, "d"), nil)
}

// key changes a key; what the header is then is not for this test to know.
func (w *walk) key(t *rapid.T) {
	p, k := w.name(t, "name")
	w.i++
	value := fmt.Sprint(w.i)
	err := w.rt.Commit(p, nil, []KeyEdit{{KeyEdit: ggufview.KeyEdit{Key: "k", Value: value}}})
	if k == nil {
		wants(t, err, ErrNoModel)
		return
	}
	wants(t, err, nil)
	b := string(wholeFile(w.t, w.rt, p))
	f, err := ggufview.Parse([]byte(b), int64(len(b)))
	wants(t, err, nil)
	if have, _ := f.Str("k"); have != value || b[f.DataOffset:] != k.now()[len(k.now())-len(b)+int(f.DataOffset):] {
		t.Fatalf("key %q, want %q, or other tensors", have, value)
	}
	k.next(b)
}

func (w *walk) rollback(t *rapid.T) {
	p, k := w.name(t, "name")
	if k == nil {
		wants(t, w.rt.Rollback(p, 1), ErrNoModel)
		return
	}
	w.rollbackOf(t, p, k)
}

func (w *walk) rollbackOf(t *rapid.T, p string, k *known) {
	to := rapid.Uint64Range(k.first()-1, k.n+1).Draw(t, "to")
	err := w.rt.Rollback(p, to)
	switch {
	case to == k.n:
		wants(t, err, unix.EINVAL)
	case to < k.first() || to > k.n:
		wants(t, err, unix.ENOENT)
	default:
		wants(t, err, nil)
		k.next(k.all[to-k.first()])
	}
}

// rename moves a model with its history, or makes it the next generation of another.
func (w *walk) rename(t *rapid.T) {
	p, k := w.name(t, "from")
	q, over := w.name(t, "to")
	if k == nil || p == q || over != nil && w.same(p, q) {
		return
	}
	rename(w.t, w.rt, p, q)
	delete(w.ref, p)
	if over == nil {
		w.ref[q] = k
		return
	}
	over.next(k.now())
}

// same reports whether two names are links of one file: rename(2) does nothing then.
func (w *walk) same(p, q string) bool {
	a, b := w.rt.Acquire(p), w.rt.Acquire(q)
	defer a.Release()
	defer b.Release()
	return a.Seg.Ino == b.Seg.Ino
}

func (w *walk) remove(t *rapid.T) {
	p, k := w.name(t, "name")
	if k != nil {
		unlink(w.t, w.rt, p)
		delete(w.ref, p)
	}
}

// link makes a model of the same file, which goes its own way.
func (w *walk) link(t *rapid.T) {
	p, k := w.name(t, "from")
	q, over := w.name(t, "to")
	if k == nil || over != nil {
		return
	}
	n, err := w.rt.Store().Live.Lookup(p)
	wants(t, err, nil)
	defer n.Close()
	wants(t, w.rt.Store().Live.Link(n, q), nil)
	g, err := Judge(n)
	wants(t, err, nil)
	w.rt.tell(w.rt.Publish(q, g))
	w.ref[q] = &known{}
	w.ref[q].next(k.now())
}

func wants(t *rapid.T, have, want error) {
	t.Helper()
	if !errors.Is(have, want) {
		t.Fatalf("%v, want %v", have, want)
	}
}

func (w *walk) check(t *rapid.T) {
	for _, p := range walkNames {
		k := w.ref[p]
		if k == nil {
			if w.rt.Known(p) {
				t.Fatalf("%s is there", p)
			}
			continue
		}
		if n := w.rt.Generation(p); n != k.n {
			t.Fatalf("%s is at generation %d, want %d", p, n, k.n)
		}
		if have := string(wholeFile(w.t, w.rt, p)); have != k.now() {
			t.Fatalf("%s has other bytes in generation %d", p, k.n)
		}
		var have []uint64
		for _, v := range w.rt.History(p) {
			have = append(have, v.N)
		}
		if len(have) != len(k.all) || !slices.IsSorted(have) || have[0] != k.first() {
			t.Fatalf("history of %s: %v, want %d from %d on", p, have, len(k.all), k.first())
		}
	}
	if left, err := w.rt.Store().Stage.Names(); err != nil || len(left) > 0 {
		t.Fatalf("left in stage: %v %v", left, err)
	}
}
