package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	stdflag "flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"vbootfs/ggufview"
)

// The operations are the same every time; -rapid.seed and -rapid.checks give others.
func init() {
	for name, value := range map[string]string{"rapid.seed": "1", "rapid.checks": "20", "rapid.nofailfile": "true"} {
		if err := stdflag.Set(name, value); err != nil {
			panic(err)
		}
	}
}

// epoch is a generation of a model in the reference, and how it came.
type epoch struct {
	b        string
	touched  []string // what it changed
	segment  bool     // it is another file
	replaces bool     // it may be different in everything
}

// draft is what somebody has staged.
type draft struct {
	tensors map[string][]byte
	base    map[string]uint64
}

// modelled is a model in the reference, with all generations since it was made.
type modelled struct {
	n        uint64
	all      []epoch
	drafts   map[string]*draft
	touched  map[string]uint64
	replaced uint64
}

func (m *modelled) now() string   { return m.all[len(m.all)-1].b }
func (m *modelled) first() uint64 { return m.n + 1 - uint64(len(m.all)) }

func (m *modelled) next(e epoch) {
	m.n++
	m.all = append(m.all, e)
	for _, what := range e.touched {
		m.touched[what] = m.n
	}
	if e.replaces {
		m.replaced = m.n
	}
}

// rollback is the epoch that brings generation to back.
func (m *modelled) rollback(to uint64) epoch {
	e := epoch{b: m.all[to-m.first()].b}
	for _, x := range m.all[to-m.first()+1:] {
		e.touched = append(e.touched, x.touched...)
		e.replaces = e.replaces || x.segment
	}
	if e.segment = e.replaces; e.replaces {
		e.touched = nil
	}
	return e
}

// mounted runs random operations on a mount and on the reference.
type mounted struct {
	m   *mount
	ref map[string]*modelled
	new []string // contents of files that are uploaded
	i   int      // makes values differ
}

var mountedNames = []string{"a.gguf", "b.gguf", "c.gguf"}

// numbers are the new values of a tensor of four.
func (w *mounted) numbers() []float32 {
	w.i++
	return []float32{float32(w.i % 1000), 1, 2, 3}
}

func quantised(typ ggufview.Type, v []float32) []byte {
	out := make([]byte, len(v)*typ.BlockBytes())
	if err := ggufview.Quantize(typ, false, out, v); err != nil {
		panic(err)
	}
	return out
}

// tinyText has tensors a (F32) and b (F16) of four values, and a key k.
func tinyText(t *testing.T, v float32) string {
	t.Helper()
	b, err := (&ggufview.Spec{
		KV: []ggufview.SpecKV{{Key: "general.architecture", Value: "llama"}, {Key: "k", Value: "text"}},
		Tensors: []ggufview.SpecTensor{
			{Name: "a", NE: []int64{4}, Type: ggufview.F32, Data: quantised(ggufview.F32, []float32{v, 0, 0, 0})},
			{Name: "b", NE: []int64{4}, Type: ggufview.F16, Data: quantised(ggufview.F16, []float32{v, 0, 0, 0})},
		},
	}).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestMountAgainstReference(t *testing.T) {
	quote(t, "`rollback N` in `ctl` makes the content of generation N the next generation.",
		"If something that a draft changes was changed by another commit since it was staged, the commit fails with EBUSY.",
		"A draft follows its model when that is renamed, and never changes another one that has got the name.")
	w := &mounted{m: newMount(t, "none"), new: []string{tinyText(t, 1), tinyText(t, 2)}}
	rapid.Check(t, func(rt *rapid.T) {
		w.ref = map[string]*modelled{}
		w.clear(rt)
		rt.Repeat(map[string]func(*rapid.T){
			"upload": w.upload, "fork": w.fork, "rename": w.rename, "remove": w.remove,
			"data": w.data, "f32": w.f32, "part": w.part, "key": w.key, "rollback": w.rollback,
			"begin": w.begin, "stage": w.stage, "commit": w.commit, "abort": w.abort, "": w.check,
		})
	})
	w.clear(t)
}

// fataler is testing.T or rapid.T.
type fataler interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func (w *mounted) clear(t fataler) {
	for _, p := range mountedNames {
		if err := os.Remove(w.m.out(p)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
}

func wants(t fataler, have, want error) {
	t.Helper()
	if !errors.Is(have, want) {
		t.Fatalf("%v, want %v", have, want)
	}
}

// model chooses a name; k is nil if nothing is loaded under it.
func (w *mounted) model(t *rapid.T, what string) (p string, k *modelled) {
	p = rapid.SampledFrom(mountedNames).Draw(t, what)
	return p, w.ref[p]
}

func (w *mounted) dir(p string) string { return w.m.boot(filepath.Join("models", p)) }

// came is a whole file under a name.
func (w *mounted) came(p, b string) {
	k := w.ref[p]
	if k == nil {
		k = &modelled{drafts: map[string]*draft{}, touched: map[string]uint64{}}
		w.ref[p] = k
	}
	k.next(epoch{b: b, segment: true, replaces: true})
}

func (w *mounted) upload(t *rapid.T) {
	p, _ := w.model(t, "name")
	b := rapid.SampledFrom(w.new).Draw(t, "content")
	wants(t, os.WriteFile(w.m.out(p), []byte(b), 0o644), nil)
	w.came(p, b)
}

// fork copies a model inside the mount.
func (w *mounted) fork(t *rapid.T) {
	p, k := w.model(t, "from")
	q, _ := w.model(t, "to")
	if k == nil || p == q {
		return
	}
	in, err := os.Open(w.m.out(p))
	wants(t, err, nil)
	defer in.Close()
	out, err := os.Create(w.m.out(q))
	wants(t, err, nil)
	_, err = io.Copy(out, in) // copy_file_range(2)
	wants(t, errors.Join(err, out.Close()), nil)
	w.came(q, k.now())
}

func (w *mounted) rename(t *rapid.T) {
	p, k := w.model(t, "from")
	q, over := w.model(t, "to")
	if k == nil || p == q {
		return
	}
	wants(t, os.Rename(w.m.out(p), w.m.out(q)), nil)
	delete(w.ref, p)
	if over == nil {
		w.ref[q] = k
		return
	}
	w.came(q, k.now())
}

func (w *mounted) remove(t *rapid.T) {
	if p, k := w.model(t, "name"); k != nil {
		wants(t, os.Remove(w.m.out(p)), nil)
		delete(w.ref, p)
	}
}

var tensorTypes = map[string]ggufview.Type{"a": ggufview.F32, "b": ggufview.F16}

// with is a model after tensors got other bytes.
func with(t fataler, b string, tensors map[string][]byte) string {
	out := []byte(b)
	f, err := ggufview.Parse([]byte(b), int64(len(b)))
	wants(t, err, nil)
	for name, data := range tensors {
		x, _ := f.Tensor(name)
		copy(out[x.Offset:], data)
	}
	return string(out)
}

// change writes a tensor of a model directly.
func (w *mounted) change(t *rapid.T, k *modelled, name string, data []byte) {
	k.next(epoch{b: with(t, k.now(), map[string][]byte{name: data}), touched: []string{name}})
}

func (w *mounted) data(t *rapid.T) {
	p, k := w.model(t, "name")
	name := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "tensor")
	b := quantised(tensorTypes[name], w.numbers())
	err := os.WriteFile(w.dir(p)+"/tensors/"+name+"/data", b, 0)
	if k == nil {
		wants(t, err, os.ErrNotExist)
		return
	}
	wants(t, err, nil)
	w.change(t, k, name, b)
}

func (w *mounted) f32(t *rapid.T) {
	p, k := w.model(t, "name")
	if k == nil {
		return
	}
	name, v := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "tensor"), w.numbers()
	wants(t, os.WriteFile(w.dir(p)+"/tensors/"+name+"/f32", quantised(ggufview.F32, v), 0), nil)
	w.change(t, k, name, quantised(tensorTypes[name], v))
}

// part changes the last value of tensor a, or writes past its end.
func (w *mounted) part(t *rapid.T) {
	p, k := w.model(t, "name")
	if k == nil {
		return
	}
	f, err := os.OpenFile(w.dir(p)+"/tensors/a/data", os.O_RDWR, 0)
	wants(t, err, nil)
	b := quantised(ggufview.F32, w.numbers())
	_, err = f.WriteAt(b[:4], 16)
	wants(t, err, unix.EFBIG)
	_, err = f.WriteAt(b[:4], 12)
	wants(t, errors.Join(err, f.Close()), nil)
	x, err := ggufview.Parse([]byte(k.now()), int64(len(k.now())))
	wants(t, err, nil)
	a, _ := x.Tensor("a")
	old := []byte(k.now()[a.Offset : a.Offset+12])
	w.change(t, k, "a", append(old, b[:4]...))
}

// key changes a key; what the header is then is not for this test to know.
func (w *mounted) key(t *rapid.T) {
	p, k := w.model(t, "name")
	if k == nil {
		return
	}
	w.i++
	value := strings.Repeat("x", w.i%100) + strconv.Itoa(w.i)
	wants(t, os.WriteFile(w.dir(p)+"/metadata/k", []byte(value), 0), nil)
	b, err := os.ReadFile(w.m.out(p))
	wants(t, err, nil)
	f, err := ggufview.Parse(b, int64(len(b)))
	wants(t, err, nil)
	data := string(b[f.DataOffset:])
	if have, _ := f.Str("k"); have != value || !strings.HasSuffix(k.now(), data) {
		t.Fatalf("key %q, want %q, or other tensors", have, value)
	}
	k.next(epoch{b: string(b), touched: []string{"metadata"}, segment: true})
}

func order(name, text string) error { return os.WriteFile(name, []byte(text), 0) }

func (w *mounted) rollback(t *rapid.T) {
	p, k := w.model(t, "name")
	if k == nil {
		return
	}
	to := rapid.Uint64Range(k.first()-1, k.n+1).Draw(t, "to")
	err := order(w.dir(p)+"/ctl", fmt.Sprintf("rollback %d", to))
	switch {
	case to == k.n:
		wants(t, err, unix.EINVAL)
	case to < k.first() || to > k.n:
		wants(t, err, unix.ENOENT)
	default:
		wants(t, err, nil)
		k.next(k.rollback(to))
	}
}

var draftNames = []string{"d", "e"}

func (w *mounted) draft(t *rapid.T) (dir string, k *modelled, name string) {
	p, k := w.model(t, "name")
	name = rapid.SampledFrom(draftNames).Draw(t, "draft")
	return w.dir(p) + "/drafts/" + name, k, name
}

func (w *mounted) begin(t *rapid.T) {
	dir, k, name := w.draft(t)
	err := os.Mkdir(dir, 0o755)
	switch {
	case k == nil:
		wants(t, err, os.ErrNotExist)
	case k.drafts[name] != nil:
		wants(t, err, os.ErrExist)
	default:
		wants(t, err, nil)
		k.drafts[name] = &draft{map[string][]byte{}, map[string]uint64{}}
	}
}

// stage puts a tensor into a draft, as bytes or as values, and reads it back.
func (w *mounted) stage(t *rapid.T) {
	dir, k, name := w.draft(t)
	if k == nil || k.drafts[name] == nil {
		return
	}
	d, tensor, v := k.drafts[name], rapid.SampledFrom([]string{"a", "b"}).Draw(t, "tensor"), w.numbers()
	want := quantised(tensorTypes[tensor], v)
	file, b := dir+"/tensors/"+tensor+"/data", want
	if rapid.Bool().Draw(t, "f32") {
		file, b = dir+"/tensors/"+tensor+"/f32", quantised(ggufview.F32, v)
	}
	wants(t, os.WriteFile(file, b, 0), nil)
	if d.tensors[tensor] == nil {
		d.base[tensor] = k.n // staged again it stays what it was first made from
	}
	d.tensors[tensor] = want
	have, err := os.ReadFile(dir + "/tensors/" + tensor + "/data")
	wants(t, err, nil)
	if !bytes.Equal(have, want) {
		t.Fatalf("staged %x, reads %x", want, have)
	}
}

func (w *mounted) commit(t *rapid.T) {
	dir, k, name := w.draft(t)
	if k == nil || k.drafts[name] == nil {
		return
	}
	d := k.drafts[name]
	want := error(nil)
	if len(d.tensors) == 0 {
		want = unix.EINVAL
	}
	for tensor := range d.tensors {
		if max(k.touched[tensor], k.replaced) > d.base[tensor] {
			want = unix.EBUSY
		}
	}
	wants(t, order(dir+"/ctl", "commit"), want)
	if want == nil {
		k.next(epoch{b: with(t, k.now(), d.tensors), touched: slices.Collect(maps.Keys(d.tensors))})
		k.drafts[name] = &draft{map[string][]byte{}, map[string]uint64{}}
	}
}

func (w *mounted) abort(t *rapid.T) {
	dir, k, name := w.draft(t)
	err := os.Remove(dir)
	if k == nil || k.drafts[name] == nil {
		wants(t, err, os.ErrNotExist)
		return
	}
	wants(t, err, nil)
	delete(k.drafts, name)
}

func (w *mounted) check(t *rapid.T) {
	ents, err := os.ReadDir(w.m.boot("models"))
	wants(t, err, nil)
	if len(ents) != len(w.ref) {
		t.Fatalf("%v are loaded, want %d", ents, len(w.ref))
	}
	for p, k := range w.ref {
		w.checkModel(t, p, k)
	}
}

// text is the content of a file of a model.
func (w *mounted) text(t *rapid.T, p, name string) string {
	b, err := os.ReadFile(filepath.Join(w.dir(p), name))
	wants(t, err, nil)
	return string(b)
}

func (w *mounted) checkModel(t *rapid.T, p string, k *modelled) {
	out, err := os.ReadFile(w.m.out(p))
	wants(t, err, nil)
	if string(out) != k.now() || w.text(t, p, "model.gguf") != k.now() {
		t.Fatalf("%s has other bytes in generation %d", p, k.n)
	}
	n, sum := strconv.FormatUint(k.n, 10), sha256.Sum256(out)
	if have := strings.TrimSpace(w.text(t, p, "generation")); have != n {
		t.Fatalf("%s is at generation %s, want %s", p, have, n)
	}
	if have := strings.TrimSpace(w.text(t, p, "sha256")); have != hex.EncodeToString(sum[:]) {
		t.Fatalf("sha256 of %s in generation %s is %s", p, n, have)
	}
	if have := w.text(t, p, "layout.json"); !strings.Contains(have, `"generation":`+n+",") || !strings.Contains(have, fmt.Sprintf(`"file_bytes":%d,`, len(out))) {
		t.Fatalf("layout of %s in generation %s: %s", p, n, have)
	}
	lines := strings.Split(strings.TrimSpace(w.text(t, p, "history")), "\n")
	if len(lines) != 1+len(k.all) || !strings.HasPrefix(lines[1], strconv.FormatUint(k.first(), 10)+"\t") {
		t.Fatalf("history of %s: %q, want %d from %d on", p, lines, len(k.all), k.first())
	}
	for name, d := range k.drafts {
		want := ""
		for _, tensor := range slices.Sorted(maps.Keys(d.tensors)) {
			want += "tensors/" + tensor + "\n"
		}
		if have := w.text(t, p, "drafts/"+name+"/staged"); have != want {
			t.Fatalf("%q is staged in %s of %s, want %q", have, name, p, want)
		}
	}
}
