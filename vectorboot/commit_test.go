package vectorboot

import (
	"bytes"
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
	"vbootfs/shm"
)

// newRuntime makes a runtime over a store of its own, with one model "m.gguf":
// tensors a (F32, 4), b (F16, 2x2) and a key "k".
func newRuntime(t testing.TB, base string) *Runtime {
	t.Helper()
	st, err := shm.Open(shm.Config{Base: base, ID: "t", Limit: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	rt := New(st, nil)
	t.Cleanup(func() {
		rt.Close()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return rt
}

func modelBytes(t testing.TB) []byte {
	t.Helper()
	b, err := (&ggufview.Spec{
		KV: []ggufview.SpecKV{{Key: "general.architecture", Value: "llama"}, {Key: "k", Value: uint32(7)}},
		Tensors: []ggufview.SpecTensor{
			{Name: "a", NE: []int64{4}, Type: ggufview.F32, Data: floats(1, 2, 3, -4)},
			{Name: "b", NE: []int64{2, 2}, Type: ggufview.F16, Data: []byte("abcdefgh")},
		},
	}).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func floats(v ...float32) []byte {
	out := make([]byte, 4*len(v))
	if err := ggufview.Quantize(ggufview.F32, false, out, v); err != nil {
		panic(err)
	}
	return out
}

func load(t testing.TB, rt *Runtime, p string) {
	t.Helper()
	n, err := rt.Store().Live.Create(p, 0o644, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := n.WriteAt(modelBytes(t), 0); err != nil {
		t.Fatal(err)
	}
	g, err := Judge(n)
	if err != nil {
		t.Fatal(err)
	}
	rt.tell(rt.Publish(p, g))
}

// staged is a file with the new bytes of a tensor.
func staged(t testing.TB, rt *Runtime, b []byte) *shm.Node {
	t.Helper()
	n, err := rt.Store().Stage.Tmpfile(0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return n
}

func commit(t testing.TB, rt *Runtime, name string, b []byte) error {
	t.Helper()
	n := staged(t, rt, b)
	defer n.Close()
	return rt.Commit("m.gguf", []TensorEdit{{Name: name, File: n}}, nil)
}

func tensor(t testing.TB, rt *Runtime, name string) []byte {
	t.Helper()
	g := rt.Acquire("m.gguf")
	defer g.Release()
	x, ok := g.Info.Tensor(name)
	if !ok {
		t.Fatal("no tensor", name)
	}
	b, ok := g.Slice(x.Offset, x.Bytes)
	if !ok {
		t.Fatal("no bytes of", name)
	}
	return bytes.Clone(b)
}

func TestCommitInPlace(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	old := rt.Acquire("m.gguf")
	defer old.Release()
	page := rt.models["m.gguf"].page
	bell := page.Load32(ctlDoorbell)
	if err := commit(t, rt, "a", floats(5, 6, 7, 8)); err != nil {
		t.Fatal(err)
	}
	if have := tensor(t, rt, "a"); !bytes.Equal(have, floats(5, 6, 7, 8)) {
		t.Errorf("a is %v", have)
	}
	if n := rt.Generation("m.gguf"); n != 2 {
		t.Errorf("generation %d, want 2", n)
	}
	x, _ := old.Info.Tensor("a")
	if b, _ := old.Slice(x.Offset, x.Bytes); !bytes.Equal(b, floats(5, 6, 7, 8)) {
		t.Error("a reader of the mapping does not see the commit")
	}
	if page.Load64(ctlMagic) != magic || page.Load64(ctlSequence)%2 != 0 || page.Load64(ctlGeneration) != 2 || page.Load32(ctlDoorbell) == bell {
		t.Errorf("control page: sequence %d, generation %d, doorbell %d", page.Load64(ctlSequence), page.Load64(ctlGeneration), page.Load32(ctlDoorbell))
	}
	if left, err := rt.store.Stage.Names(); err != nil || len(left) > 0 {
		t.Errorf("left in stage: %v %v", left, err)
	}
}

func TestCommitRefuses(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	before := tensor(t, rt, "a")
	nan := float32(math.NaN())
	for _, c := range []struct {
		policy, tensor string
		b              []byte
		want           error
		text           string
	}{
		{"", "a", floats(1), unix.EINVAL, "4 bytes where 16 are stored"},
		{"", "none", floats(1), unix.ENOENT, `tensor "none"`},
		{"reject_nan yes", "a", floats(1, nan, 3, 4), ErrRefused, "value NaN at element 1"},
		{"max_change 0.5", "a", floats(1, 2, 3, -1), ErrRefused, "value -1 at element 3 was -4"},
		{"max_change 0.5", "a", floats(1, nan, 3, -4), ErrRefused, "element 1"},
		{"forbid a*", "a", floats(1, 2, 3, 4), ErrRefused, `"a" may not change`},
		{"allow b", "a", floats(1, 2, 3, 4), ErrRefused, `"a" may not change`},
	} {
		policy, err := ParsePolicy(c.policy)
		if err != nil {
			t.Fatal(err)
		}
		if err := rt.SetPolicy("m.gguf", policy); err != nil {
			t.Fatal(err)
		}
		err = commit(t, rt, c.tensor, c.b)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("policy %q: %v, want %q", c.policy, err, c.text)
		}
	}
	if !bytes.Equal(tensor(t, rt, "a"), before) || rt.Generation("m.gguf") != 1 {
		t.Error("a refused commit changed something")
	}
	if err := rt.SetPolicy("m.gguf", Policy{MaxChange: 0.5, RejectNaN: true, Allow: []string{"a"}}); err != nil {
		t.Fatal(err)
	}
	if err := commit(t, rt, "a", floats(1, 4, 3, -2)); err != nil {
		t.Errorf("a change within the limits: %v", err)
	}
}

func TestPolicyText(t *testing.T) {
	want := Policy{RejectNaN: true, MaxChange: 0.25, Allow: []string{"blk.*", "x"}, Forbid: []string{"y"}}
	have, err := ParsePolicy(want.String())
	if err != nil || have.String() != want.String() {
		t.Errorf("%v, %v", have, err)
	}
	for _, bad := range []string{"reject_nan maybe", "max_change -1", "max_change NaN", "what", "allow [", "max_change 1 2"} {
		if p, err := ParsePolicy(bad); err == nil {
			t.Errorf("%q gave %v", bad, p)
		}
	}
}

func TestDraftAllOrNothing(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	for _, name := range []string{"one", "two"} {
		if err := rt.NewDraft("m.gguf", name); err != nil {
			t.Fatal(err)
		}
	}
	one, two := rt.Draft("m.gguf", "one"), rt.Draft("m.gguf", "two")
	stage := func(d *Draft, name string, b []byte) {
		t.Helper()
		if err := d.Stage(name, staged(t, rt, b), rt.Generation("m.gguf")); err != nil {
			t.Fatal(err)
		}
	}
	stage(one, "a", floats(9, 9, 9, 9))
	stage(one, "b", []byte("HGFEDCBA"))
	stage(two, "b", []byte("12345678"))
	stage(two, "a", []byte("short"))
	if err := two.Commit("m.gguf"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a draft with a tensor of a wrong size: %v", err)
	}
	if string(tensor(t, rt, "b")) != "abcdefgh" {
		t.Error("half a draft was applied")
	}
	if err := one.Commit("m.gguf"); err != nil {
		t.Fatal(err)
	}
	if string(tensor(t, rt, "b")) != "HGFEDCBA" || !bytes.Equal(tensor(t, rt, "a"), floats(9, 9, 9, 9)) {
		t.Error("the draft was not applied whole")
	}
	stage(two, "a", floats(1, 1, 1, 1))
	if err := two.Commit("m.gguf"); !errors.Is(err, ErrConflict) {
		t.Errorf("two drafts of one tensor: %v, want a conflict", err)
	}
	if got := two.Staged(); len(got) != 2 {
		t.Errorf("after the conflict %v is staged", got)
	}
	if err := rt.Abort("m.gguf", "two"); err != nil {
		t.Fatal(err)
	}
	if err := two.Commit("m.gguf"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("committing an aborted draft: %v", err)
	}
	if err := one.Commit("m.gguf"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("committing an empty draft: %v", err)
	}
}

func TestKeysReplaceTheSegment(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	old := rt.Acquire("m.gguf")
	defer old.Release()
	long := strings.Repeat("x", 10000)
	n := staged(t, rt, floats(4, 3, 2, 1))
	defer n.Close()
	err := rt.Commit("m.gguf", []TensorEdit{{Name: "a", File: n}}, []KeyEdit{
		{KeyEdit: ggufview.KeyEdit{Key: "k", Value: long}}, {KeyEdit: ggufview.KeyEdit{Key: "new", Value: float32(1)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	g := rt.Acquire("m.gguf")
	defer g.Release()
	if v, _ := g.Info.Str("k"); v != long || g.N != 2 || g.Seg.Ino == old.Seg.Ino {
		t.Errorf("k has %d bytes, generation %d", len(v), g.N)
	}
	if !bytes.Equal(tensor(t, rt, "a"), floats(4, 3, 2, 1)) || string(tensor(t, rt, "b")) != "abcdefgh" {
		t.Error("tensors are wrong in the new segment")
	}
	if !bytes.Equal(old.Bytes(), modelBytes(t)) {
		t.Error("the old segment changed")
	}
	if page := rt.models["m.gguf"].page; page.Load64(ctlSegment) != g.Seg.Ino || page.Load64(ctlSequence)%2 != 0 {
		t.Error("the control page does not tell of the new segment")
	}
}

// TestJournal dies at the worst moments of a commit and starts again.
func TestJournal(t *testing.T) {
	for _, c := range []struct {
		name    string
		journal bool // the journal was complete
		patched int  // bytes of the tensor that were changed already
		want    []byte
	}{
		{"before the journal counts", false, 0, floats(1, 2, 3, -4)},
		{"before the first byte", true, 0, floats(5, 6, 7, 8)},
		{"in the middle", true, 7, floats(5, 6, 7, 8)},
		{"after the last byte", true, 16, floats(5, 6, 7, 8)},
	} {
		base := t.TempDir()
		st, err := shm.Open(shm.Config{Base: base, ID: "t", Limit: 64 << 20})
		if err != nil {
			t.Fatal(err)
		}
		rt := New(st, nil)
		load(t, rt, "m.gguf")
		g := rt.Acquire("m.gguf")
		x, _ := g.Info.Tensor("a")
		n := staged(t, rt, floats(5, 6, 7, 8))
		j, err := rt.writeJournal(rt.models["m.gguf"], g, []piece{{patch{x.Offset, x.Bytes}, n, 0}})
		if err != nil {
			t.Fatal(err)
		}
		if !c.journal {
			if err := st.Stage.Rename(j.list[0], st.Stage, "1-1", 0); err != nil {
				t.Fatal(err)
			}
		}
		rt.models["m.gguf"].page.begin()
		if _, err := g.Seg.Node.Copy(n, 0, x.Offset, int64(c.patched)); err != nil {
			t.Fatal(err)
		}
		n.Close()
		g.Release()
		for _, m := range rt.models { // a killed process unmaps and closes
			m.page.close()
			m.cur.Release()
		}
		st.Abandon()

		again := newRuntime(t, base)
		mend(t, again)
		if have := tensor(t, again, "a"); !bytes.Equal(have, c.want) {
			t.Errorf("%s: a is %v, want %v", c.name, have, c.want)
		}
		if seq := again.models["m.gguf"].page.Load64(ctlSequence); seq%2 != 0 {
			t.Errorf("%s: the sequence stays odd", c.name)
		}
		if left, err := again.store.Stage.Names(); err != nil || len(left) > 0 {
			t.Errorf("%s: left in stage: %v %v", c.name, left, err)
		}
	}
}

// mend does what a daemon does at its start.
func mend(t testing.TB, rt *Runtime) {
	t.Helper()
	damaged, err := rt.Mend()
	if len(damaged) > 0 || err != nil {
		t.Error(damaged, err)
	}
	if err := rt.Recover(); err != nil {
		t.Fatal(err)
	}
}

// interrupt is Runtime.Interrupt for those who wait.
func interrupt(ctx context.Context, rt *Runtime, opcode uint32, timeout time.Duration) error {
	answer := make(chan error, 1)
	rt.Interrupt(ctx, "m.gguf", opcode, timeout, func(err error) { answer <- err })
	return <-answer
}

func TestSessions(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	ctx := context.Background()
	s, err := rt.Attach("m.gguf", 42, func() {})
	if err != nil {
		t.Fatal(err)
	}
	dead, err := rt.Attach("m.gguf", 43, func() {})
	if err != nil {
		t.Fatal(err)
	}
	if err := interrupt(ctx, rt, 0xff, 0); err != nil {
		t.Fatal(err)
	}
	r, err := s.Next()
	if err != nil || r.Op != "interrupt 0xff" {
		t.Errorf("%+v, %v", r, err)
	}
	if err := s.Ack(r.N + 1); !errors.Is(err, unix.EINVAL) {
		t.Errorf("acknowledging what was not asked: %v", err)
	}
	if err := s.Ack(r.N); err != nil {
		t.Error(err)
	}
	err = interrupt(ctx, rt, 1, time.Millisecond)
	if !errors.Is(err, unix.ETIMEDOUT) || !strings.Contains(err.Error(), "42, 43") {
		t.Errorf("nobody answers: %v", err)
	}
	answered := make(chan error, 1)
	rt.Interrupt(ctx, "m.gguf", 2, time.Minute, func(err error) { answered <- err })
	for {
		r, err := s.Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Ack(r.N); err != nil {
			t.Fatal(err)
		}
		if r.Op == "interrupt 0x2" {
			break
		}
	}
	rt.Detach("m.gguf", dead) // who is gone is not waited for
	if err := <-answered; err != nil {
		t.Errorf("all that live have answered: %v", err)
	}
	if _, err := s.Next(); !errors.Is(err, ErrWait) {
		t.Errorf("nothing is left to read: %v", err)
	}
	rt.tell(rt.Remove("m.gguf"))
	if _, err := s.Next(); !errors.Is(err, ErrNoModel) {
		t.Errorf("the model is gone: %v", err)
	}
	rt.Detach("m.gguf", s)
	if n := rt.AttachedSessions(); n != 0 {
		t.Errorf("%d sessions left", n)
	}
}

func TestUnreadChangesAreMerged(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	s, err := rt.Attach("m.gguf", 1, func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Detach("m.gguf", s)
	for range 3 * maxRequests {
		if err := commit(t, rt, "a", floats(1, 2, 3, 4)); err != nil {
			t.Fatal(err)
		}
	}
	if info := rt.Sessions("m.gguf"); len(info) != 1 || info[0].Unread != 1 {
		t.Errorf("unread: %+v", info)
	}
	for range maxRequests - 1 {
		if err := interrupt(context.Background(), rt, 1, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := interrupt(context.Background(), rt, 1, 0); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a session that reads nothing: %v, want EAGAIN", err)
	}
}

func TestFollow(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	woken := make(chan struct{}, 1)
	f, err := rt.Follow("m.gguf", func() { woken <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Next(); !errors.Is(err, ErrWait) || f.Ready() {
		t.Errorf("nothing has changed: %v", err)
	}
	if err := commit(t, rt, "a", floats(0, 0, 0, 0)); err != nil {
		t.Fatal(err)
	}
	<-woken
	if n, err := f.Next(); n != 2 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// An interrupt that waits ends with its caller, and with the model.
func TestInterruptEnds(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	s, err := rt.Attach("m.gguf", 1, func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Detach("m.gguf", s)
	ctx, cancel := context.WithCancel(t.Context())
	answers := make(chan error, 2)
	rt.Interrupt(ctx, "m.gguf", 1, time.Hour, func(err error) { answers <- err })
	cancel()
	if err := <-answers; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller is gone: %v", err)
	}
	rt.Interrupt(t.Context(), "m.gguf", 1, time.Hour, func(err error) { answers <- err })
	rt.tell(rt.Remove("m.gguf"))
	if err := <-answers; !errors.Is(err, ErrNoModel) {
		t.Errorf("the model is gone: %v", err)
	}
}
