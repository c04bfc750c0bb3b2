package vectorboot

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// attach opens n sessions that end with the test.
func attach(t *testing.T, rt *Runtime, n int) (list []*Session) {
	t.Helper()
	for i := range n {
		s, err := rt.Attach("m.gguf", uint32(i), func() {})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { rt.Detach("m.gguf", s) })
		list = append(list, s)
	}
	return list
}

// A session that reads nothing keeps interrupts from all, but takes none of them from
// some, and hides no change from those that read.
func TestUnreadSessionHidesNothing(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	lazy := attach(t, rt, 1)[0]
	for range maxRequests {
		if err := interrupt(t.Context(), rt, 1, 0); err != nil {
			t.Fatal(err)
		}
	}
	readers := attach(t, rt, 20)
	if err := interrupt(t.Context(), rt, 2, 0); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("%v, want EAGAIN", err)
	}
	for _, s := range readers {
		if r, err := s.Next(); !errors.Is(err, ErrWait) {
			t.Errorf("%+v, %v of an interrupt that was refused", r, err)
		}
	}
	if err := commit(t, rt, "a", floats(1, 2, 3, 4)); err != nil {
		t.Fatal(err)
	}
	for _, s := range readers {
		if r, err := s.Next(); r.Op != "generation 2" || err != nil {
			t.Errorf("%+v, %v after a change", r, err)
		}
	}
	if n := len(lazy.queue); n != maxRequests+1 {
		t.Errorf("%d requests", n)
	}
}

// Changes are told without locks, so the later one may be told first.
func TestChangesToldInAnyOrder(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	s := attach(t, rt, 1)[0]
	early, err := rt.Follow("m.gguf", func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	second, third := publish(t, rt), publish(t, rt)
	late, err := rt.Follow("m.gguf", func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if n, err := late.Next(); !errors.Is(err, ErrWait) || late.Ready() {
		t.Errorf("%d, %v, opened with generation 3", n, err)
	}
	for _, c := range append(third, second...) {
		c.Told()
	}
	if n, err := early.Next(); n != 3 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	for _, f := range []*Follower{early, late} {
		if n, err := f.Next(); !errors.Is(err, ErrWait) || f.Ready() {
			t.Errorf("%d, %v after generation 3", n, err)
		}
	}
	if r, err := s.Next(); r.Op != "generation 3" || err != nil {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := s.Next(); !errors.Is(err, ErrWait) {
		t.Errorf("%+v, %v after generation 3", r, err)
	}
}

// publish shows m.gguf once more; the caller tells.
func publish(t *testing.T, rt *Runtime) []Change {
	t.Helper()
	n, err := rt.Store().Live.Lookup("m.gguf")
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	g, err := Judge(n)
	if err != nil {
		t.Fatal(err)
	}
	return rt.Publish("m.gguf", g)
}
