package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// half opens a file, writes the first half of b and leaves it open.
func half(t *testing.T, name string, b []byte) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() }) // fails: the daemon is dead by then
	if _, err := f.Write(b[:len(b)/2]); err != nil {
		t.Fatal(err)
	}
}

func TestKilledDaemonIsTakenOver(t *testing.T) {
	a, b := makeModel(t, "1M", 1), makeModel(t, "1M", 2)
	source := tempDir(t)
	m := newMount(t, source)
	m.put(a, "a.gguf")
	m.put(b, "b.gguf")
	m.put(b, "a.gguf") // generation 2
	must(t, "mkdir", m.out("dir"))
	must(t, "mv", m.out("b.gguf"), m.out("dir/c.gguf"))
	write(t, m.out("note"), []byte("kept"))
	write(t, m.boot("ctl"), []byte("sync"))
	bytesB := read(t, b)
	half(t, m.out("new.gguf"), bytesB)
	half(t, m.out("a.gguf"), read(t, a))

	m.kill()
	// SOURCE is not read: what it holds now would be wrong.
	write(t, filepath.Join(source, "a.gguf"), []byte("rubbish"))
	m.start(source)
	m.expect("a.gguf", "state", "loaded")
	m.expect("a.gguf", "generation", "2")
	same(t, m.boot("models/a.gguf/model.gguf"), bytesB)
	m.expect("dir/c.gguf", "state", "loaded")
	same(t, m.out("dir/c.gguf"), bytesB)
	same(t, m.out("note"), []byte("kept"))
	m.expect("new.gguf", "state", "failed")
	if text := m.of("new.gguf", "error"); !strings.Contains(text, "the file has") {
		t.Errorf("the half-written file: %s", text)
	}
	same(t, m.out("new.gguf"), bytesB[:len(bytesB)/2])
	same(t, m.out("a.gguf.rejected"), read(t, a)[:len(read(t, a))/2])
	write(t, m.boot("ctl"), []byte("sync"))
	same(t, filepath.Join(source, "a.gguf"), bytesB) // and SOURCE is mended
}

func TestSyncedFilesSurviveAReboot(t *testing.T) {
	a := makeModel(t, "1M", 1)
	source := tempDir(t)
	m := newMount(t, source)
	must(t, "mkdir", m.out("d"))
	for _, name := range []string{"d/a.gguf", "note"} {
		from, err := os.ReadFile(a)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(m.out(name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(from); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	m.kill()
	m.reboot()
	m.start(source)
	same(t, m.out("note"), read(t, a))
	m.expect("d/a.gguf", "state", "cold")
	same(t, m.boot("models/d/a.gguf/model.gguf"), read(t, a))
	m.expect("d/a.gguf", "state", "loaded")
	m.expect("d/a.gguf", "generation", "1")
}

// reboot throws the shared memory away, as a reboot does.
func (m *mount) reboot() {
	m.t.Helper()
	_ = unix.Unmount(m.dir, unix.MNT_DETACH)
	dirs, err := filepath.Glob(filepath.Join(m.segs, "*"))
	if err != nil || len(dirs) == 0 {
		m.t.Fatalf("no segments to lose: %v", err)
	}
	for _, d := range dirs {
		_ = unix.Unmount(d, unix.MNT_DETACH) // plain files have no mount
		if err := os.RemoveAll(d); err != nil {
			m.t.Fatal(err)
		}
	}
}

// TestKillsAtRandomPoints kills the daemon while models are written, replaced,
// renamed, removed and committed to. Whatever the point, afterwards every model is
// one of the versions that somebody wrote, whole.
func TestKillsAtRandomPoints(t *testing.T) {
	const rounds = 12
	r := rand.New(rand.NewPCG(1, 2))
	source := tempDir(t)
	versions := [][]byte{read(t, makeModel(t, "1M", 1)), read(t, makeModel(t, "1M", 2)), read(t, makeModel(t, "1M", 3))}
	m := unmounted(t)
	for round := range rounds {
		m.start(source)
		checkWhole(t, m, versions)
		m.work(versions, 5+r.IntN(60), rand.New(rand.NewPCG(uint64(round), 3)))
	}
	m.start(source)
	checkWhole(t, m, versions)
}

// work does things until some are done, and kills the daemon in the next.
func (m *mount) work(versions [][]byte, count int, r *rand.Rand) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			if i == count {
				go unix.Kill(m.pid, unix.SIGKILL)
			}
			p := m.out(fmt.Sprintf("%d.gguf", r.IntN(3)))
			var err error
			switch v := versions[r.IntN(len(versions))]; r.IntN(6) {
			case 0:
				err = os.Remove(p)
			case 1:
				if err = os.WriteFile(p+".part", v, 0o644); err == nil {
					err = os.Rename(p+".part", p)
				}
			case 2:
				err = os.Rename(p, m.out(fmt.Sprintf("%d.gguf", r.IntN(3))))
			default:
				err = os.WriteFile(p, v, 0o644)
			}
			if err != nil && strings.Contains(err.Error(), "not connected") {
				return
			}
		}
	}()
	<-done
	m.wait()
}

func checkWhole(t *testing.T, m *mount, versions [][]byte) {
	t.Helper()
	found, err := filepath.Glob(m.out("*.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range found {
		name := filepath.Base(p)
		have := read(t, p)
		if len(have) == 0 {
			continue // made, and not written yet: no model
		}
		whole := false
		part := false
		for _, v := range versions {
			whole = whole || bytes.Equal(have, v)
			part = part || bytes.HasPrefix(v, have)
		}
		switch state := strings.TrimSpace(m.of(name, "state")); {
		case whole && state == "loaded", whole && state == "cold":
		case part && state == "failed":
		default:
			t.Errorf("%s is %s, whole %v, part %v, %d bytes", name, state, whole, part, len(have))
		}
	}
}

func write(t testing.TB, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestKillsInCommits kills the daemon while drafts of two tensors are committed.
// Afterwards both tensors are of the same draft, whole, and the generation counts on.
func TestKillsInCommits(t *testing.T) {
	const rounds = 8
	r := rand.New(rand.NewPCG(4, 5))
	a := makeModel(t, "1M", 1)
	m := newMount(t, "none")
	m.put(a, "a.gguf")
	dir := m.boot("models/a.gguf")
	names := []string{"token_embd.weight", "output.weight"}
	size := len(read(t, filepath.Join(dir, "tensors", names[0], "data")))
	for range rounds {
		m.commits(dir, names, size, 3+r.IntN(40))
		m.start("none")
		first := read(t, filepath.Join(dir, "tensors", names[0], "data"))
		second := read(t, filepath.Join(dir, "tensors", names[1], "data"))
		if !bytes.Equal(first, second) || !bytes.Equal(first, bytes.Repeat(first[:1], size)) {
			t.Errorf("generation %s is torn", m.of("a.gguf", "generation"))
		}
	}
}

// commits writes drafts, each filling both tensors with one byte, until count
// are done, and kills the daemon in the next.
func (m *mount) commits(dir string, names []string, size, count int) {
	m.t.Helper()
	for i := 0; ; i++ {
		if i == count {
			go unix.Kill(m.pid, unix.SIGKILL)
		}
		err := os.Mkdir(dir+"/drafts/d", 0o755)
		for _, name := range names {
			err = errors.Join(err, os.WriteFile(dir+"/drafts/d/tensors/"+name+"/data", bytes.Repeat([]byte{byte(i + 1)}, size), 0))
		}
		err = errors.Join(err, os.WriteFile(dir+"/drafts/d/ctl", []byte("commit"), 0), os.Remove(dir+"/drafts/d"))
		if err == nil {
			continue
		}
		if i < count {
			m.t.Fatal(err)
		}
		m.wait()
		return
	}
}
