package fs

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"vbootfs/vectorboot"
)

// content is what a file of the reference holds. Hard links and readers share it;
// a commit changes it for those who share the segment.
type content struct {
	b     []byte
	valid bool // a whole GGUF
}

// reference is the simplest thing that behaves as the mount should.
type reference struct {
	files map[string]*content
	gens  map[string]int  // generation of what is loaded under a name
	fails map[string]bool // names whose last load failed without a model before
}

// machine runs random operations on the mount and on the reference.
type machine struct {
	s    *site
	ref  reference
	good [][]byte
	open []reader
}

// reader has a file open and knows what it has to show.
type reader struct {
	f    *os.File
	want *content
}

var machineNames = []string{"a.gguf", "b.gguf", "d/c.gguf", "plain", "x.part"}

// tensorA is where the committed tensor lies in a model of smallModel's shape.
const tensorA = "0123456789abcdef"

// The operations are the same every time; -rapid.seed and -rapid.checks give others.
func init() {
	for name, value := range map[string]string{"rapid.seed": "1", "rapid.nofailfile": "true"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
}

func TestModelBased(t *testing.T) {
	modes(t, func(t *testing.T, s *site) {
		s.rt.SetHistory(0) // a commit to a file that history keeps of another model copies it
		base := smallModel(t)
		var good [][]byte
		for i := range 3 {
			good = append(good, bytes.Replace(base, []byte("abcdefgh"), fmt.Appendf(nil, "%08d", i), 1))
		}
		rapid.Check(t, func(rt *rapid.T) {
			m := &machine{s: s, good: good, ref: reference{map[string]*content{}, map[string]int{}, map[string]bool{}}}
			m.clear(rt)
			rt.Repeat(map[string]func(*rapid.T){
				"write": m.write, "rename": m.rename, "remove": m.remove, "link": m.link,
				"commit": m.commit, "read": m.read, "": m.check,
			})
			m.clear(rt)
		})
	})
}

func (m *machine) clear(t *rapid.T) {
	for _, r := range m.open {
		r.f.Close()
	}
	m.open = nil
	if err := os.RemoveAll(filepath.Join(m.s.out, "d")); err != nil {
		t.Fatal(err)
	}
	ents, err := os.ReadDir(m.s.out)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ents {
		if err := os.Remove(filepath.Join(m.s.out, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	// A refused rename leaves a record without a file; writing the name ends it.
	for _, name := range m.s.rt.Paths() {
		p := filepath.Join(m.s.out, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, m.good[0], 0o644), os.Remove(p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(m.s.out, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func name(t *rapid.T, label string) string { return rapid.SampledFrom(machineNames).Draw(t, label) }

func (m *machine) path(name string) string { return filepath.Join(m.s.out, name) }

// loaded reports whether the reference has a model of that name.
func (m *machine) loaded(n string) bool { return m.ref.gens[n] > 0 }

// load makes c the model or file n.
func (m *machine) load(n string, c *content) {
	m.ref.files[n] = c
	delete(m.ref.fails, n)
	if vectorboot.Loadable(n) {
		m.ref.gens[n]++
	}
}

func (m *machine) write(t *rapid.T) {
	n := name(t, "name")
	c := &content{m.good[rapid.IntRange(0, 2).Draw(t, "version")], true}
	if rapid.IntRange(0, 3).Draw(t, "bad") == 0 {
		c = &content{c.b[:len(c.b)-70], false}
	}
	err := os.WriteFile(m.path(n), c.b, 0o644)
	switch {
	case c.valid || !vectorboot.Loadable(n):
		same(t, err, nil)
		m.load(n, c)
	default:
		same(t, err, unix.EBADMSG)
		if !m.loaded(n) {
			m.ref.files[n], m.ref.fails[n] = c, true
		} else {
			m.ref.files[n+".rejected"] = c
		}
	}
}

func (m *machine) rename(t *rapid.T) {
	from, to := name(t, "from"), name(t, "to")
	c := m.ref.files[from]
	err := os.Rename(m.path(from), m.path(to))
	switch {
	case c == nil:
		same(t, err, unix.ENOENT)
	case c == m.ref.files[to]: // the same file, perhaps by two links: nothing happens
		same(t, err, nil)
	case vectorboot.Loadable(to) && !c.valid:
		same(t, err, unix.EBADMSG)
		if !m.loaded(to) {
			m.ref.fails[to] = true
		}
	default:
		same(t, err, nil)
		was := m.ref.gens[from]
		known := m.loaded(to) || m.ref.fails[to]
		m.forget(from)
		if was > 0 && vectorboot.Loadable(to) && !known {
			m.ref.files[to], m.ref.gens[to] = c, was
			return
		}
		if !vectorboot.Loadable(to) {
			m.forget(to)
		}
		m.load(to, c)
	}
}

func (m *machine) forget(n string) {
	delete(m.ref.files, n)
	delete(m.ref.gens, n)
	delete(m.ref.fails, n)
}

func (m *machine) remove(t *rapid.T) {
	n := name(t, "name")
	err := os.Remove(m.path(n))
	if m.ref.files[n] == nil {
		same(t, err, unix.ENOENT)
		return
	}
	same(t, err, nil)
	m.forget(n)
}

func (m *machine) link(t *rapid.T) {
	from, to := name(t, "from"), name(t, "to")
	c := m.ref.files[from]
	if c != nil && !m.loaded(from) {
		return // a write through one of two names of an ordinary file would change both
	}
	err := os.Link(m.path(from), m.path(to))
	switch {
	case c == nil:
		same(t, err, unix.ENOENT)
	case m.ref.files[to] != nil:
		same(t, err, unix.EEXIST)
	case vectorboot.Loadable(to) && !c.valid:
		same(t, err, unix.EBADMSG)
		m.ref.fails[to] = true
	default:
		same(t, err, nil)
		m.load(to, c)
	}
}

// commit changes a tensor: in place, unless the file has another name.
func (m *machine) commit(t *rapid.T) {
	n := name(t, "name")
	if !m.loaded(n) {
		return
	}
	v := fmt.Sprintf("%016d", rapid.IntRange(0, 1000).Draw(t, "value"))
	c := m.ref.files[n]
	at := bytes.Index(m.good[0], []byte(tensorA))
	next := bytes.Clone(c.b)
	copy(next[at:], v)
	err := os.WriteFile(filepath.Join(m.s.vb, "models", n, "tensors/a/data"), []byte(v), 0o644)
	same(t, err, nil)
	m.ref.gens[n]++
	for other, of := range m.ref.files {
		if other != n && of == c { // the other name keeps its bytes
			m.ref.files[n] = &content{next, true}
			return
		}
	}
	c.b = next
}

// read opens a file now, to be looked at later.
func (m *machine) read(t *rapid.T) {
	n := name(t, "name")
	c := m.ref.files[n]
	if c == nil || !m.loaded(n) || len(m.open) > 5 {
		return
	}
	f, err := os.Open(m.path(n))
	same(t, err, nil)
	m.open = append(m.open, reader{f, c})
}

// check compares everything that can be seen.
func (m *machine) check(t *rapid.T) {
	for _, n := range machineNames {
		have, err := os.ReadFile(m.path(n))
		c := m.ref.files[n]
		if c == nil {
			same(t, err, unix.ENOENT)
		} else if err != nil || !bytes.Equal(have, c.b) {
			t.Fatalf("%s holds %d bytes, want %d: %v", n, len(have), len(c.b), err)
		}
		m.checkModel(t, n, c)
	}
	for _, r := range m.open {
		have, err := io.ReadAll(io.NewSectionReader(r.f, 0, 1<<20))
		if err != nil || !bytes.Equal(have, r.want.b) {
			t.Fatalf("a reader sees %d bytes, want %d: %v", len(have), len(r.want.b), err)
		}
	}
}

func (m *machine) checkModel(t *rapid.T, n string, c *content) {
	dir := filepath.Join(m.s.vb, "models", n)
	state, err := os.ReadFile(dir + "/state")
	switch {
	case m.loaded(n):
		gen, _ := os.ReadFile(dir + "/generation")
		bytesOf, _ := os.ReadFile(dir + "/model.gguf")
		if string(state) != "loaded\n" || string(gen) != fmt.Sprintln(m.ref.gens[n]) || !bytes.Equal(bytesOf, c.b) {
			t.Fatalf("%s is %q, generation %q, want loaded, %d", n, state, gen, m.ref.gens[n])
		}
	case m.ref.fails[n]:
		if string(state) != "failed\n" {
			t.Fatalf("%s is %q (%v), want failed", n, state, err)
		}
	default:
		same(t, err, unix.ENOENT)
	}
}

func same(t *rapid.T, have, want error) {
	t.Helper()
	if !errors.Is(have, want) {
		t.Fatalf("%v, want %v", have, want)
	}
}
