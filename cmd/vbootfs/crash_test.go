package main

import (
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

func write(t testing.TB, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
}
