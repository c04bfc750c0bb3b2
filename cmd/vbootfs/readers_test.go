package main

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// held is a file that a reader has open and mapped.
type held struct {
	name string
	f    *os.File
	mem  []byte
}

// holdAll opens and maps a model wherever it can be read. The function that it
// returns checks that all of it still shows these bytes, and lets go.
func holdAll(t testing.TB, m *mount, p string) (check func(want []byte)) {
	t.Helper()
	var all []held
	for _, name := range []string{m.out(p), m.boot("models/" + p + "/model.gguf"), m.layout(p).Segment.Path} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		mem, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, held{name, f, mem})
	}
	return func(want []byte) {
		for _, h := range all {
			h.check(t, want)
		}
	}
}

func (h held) check(t testing.TB, want []byte) {
	t.Helper()
	defer h.f.Close()
	defer unix.Munmap(h.mem)
	if !bytes.Equal(h.mem, want) {
		t.Errorf("%s: the mapping changed", h.name)
	}
	have := make([]byte, len(want)+1)
	if n, _ := h.f.ReadAt(have, 0); !bytes.Equal(have[:n], want) {
		t.Errorf("%s: the open file changed: %d bytes", h.name, n)
	}
}

// ends are ways in which a model stops being what a reader has open. $0 is the
// model in output/, $1 another one outside of the mount.
var ends = []struct{ name, script string }{
	{"cp", `cp "$1" "$0"`},
	{"rename over", `cp "$1" "$0.tmp"; mv "$0.tmp" "$0"`},
	{"rm", `rm "$0"`},
	{"rm and cp", `rm "$0"; cp "$1" "$0"`},
	{"rename", `mv "$0" "$0-b.gguf"`},
	{"append", `echo more >>"$0"`},
	{"bad file", `echo no >"$0" || true`},
	{"empty file", `: >"$0"`},
	{"exchange", `cp "$1" "$0-c.gguf"; python3 -c '
import ctypes, os, sys
a, b = map(os.fsencode, sys.argv[1:])
sys.exit(ctypes.CDLL(None).renameat2(-100, a, -100, b, 2))' "$0" "$0-c.gguf"`},
}

func TestReadersKeepWhatTheyOpened(t *testing.T) {
	first, second := makeModel(t, "2M", 1), makeModel(t, "1M", 2)
	m := newMount(t, "none")
	for i, e := range ends {
		t.Run(e.name, func(t *testing.T) {
			p := fmt.Sprintf("%d.gguf", i)
			m.put(first, p)
			check := holdAll(t, m, p)
			must(t, "sh", "-e", "-c", e.script, m.out(p), second)
			check(read(t, first))
		})
	}
}

func TestTruncateByPathOfALoadedModel(t *testing.T) {
	from := makeModel(t, "1M", 1)
	m := newMount(t, "none")
	m.put(from, "a.gguf")
	if err := unix.Truncate(m.out("a.gguf"), 100); err != unix.ETXTBSY {
		t.Errorf("truncate: %v, want ETXTBSY", err)
	}
	m.holds("a.gguf", read(t, from))
}

// TestNothingMixed replaces a model again and again under readers, who must see
// one version or another, whole.
func TestNothingMixed(t *testing.T) {
	const replacements, readers = 200, 3
	m := newMount(t, "none")
	names := make([]string, 4)
	versions := map[string]bool{}
	for i := range names {
		names[i] = makeModel(t, fmt.Sprintf("%dk", 600+200*i), i)
		versions[string(read(t, names[i]))] = true
	}
	m.put(names[0], "a.gguf")
	var done atomic.Bool
	var wg sync.WaitGroup
	counts := make([]int, readers)
	for i := range readers {
		wg.Go(func() {
			for path := []string{m.out("a.gguf"), m.boot("models/a.gguf/model.gguf"), m.boot("active/model.gguf")}[i]; !done.Load(); counts[i]++ {
				b, err := os.ReadFile(path)
				if err != nil {
					t.Errorf("after %d reads: %v", counts[i], err)
					return
				}
				if !versions[string(b)] {
					t.Errorf("read %d of %s is a mixture of %d bytes", counts[i], path, len(b))
				}
			}
		})
	}
	for i := range replacements {
		script := `cp "$0" "$1"`
		if i%2 == 1 {
			script = `cp "$0" "$1.tmp" && mv "$1.tmp" "$1"`
		}
		must(t, "sh", "-c", script, names[(i+1)%len(names)], m.out("a.gguf"))
	}
	done.Store(true)
	wg.Wait()
	t.Logf("%d replacements, %v reads", replacements, counts)
	m.expect("a.gguf", "generation", fmt.Sprint(replacements+1))
}
