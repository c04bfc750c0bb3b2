package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
)

// check runs `vbootfs check` and wants it to find nothing.
func (m *mount) check(args ...string) {
	m.t.Helper()
	args = append([]string{"check"}, args...)
	if out, code := m.run(binary, append(args, m.dir)...); code != 0 {
		m.t.Errorf("vbootfs check: exit code %d:\n%s", code, out)
	}
}

// settled waits until SOURCE has everything.
func (m *mount) settled() {
	m.t.Helper()
	write(m.t, m.boot("ctl"), []byte("sync"))
}

// populate makes what the checks need to have looked at.
func (m *mount) populate() {
	m.t.Helper()
	from := smallModel(m.t, 1)
	m.put(from, "a.gguf")
	m.put(smallModel(m.t, 2), "a.gguf")
	must(m.t, "mkdir", m.out("d"))
	m.put(from, "d/b.gguf")
	m.put(from, "c.gguf")
	must(m.t, "ln", m.out("d/b.gguf"), m.out("d/link.gguf"))
	must(m.t, "ln", "-s", "somewhere", m.out("symlink"))
	must(m.t, "mkfifo", m.out("fifo"))
	write(m.t, m.out("note"), []byte("text"))
	if err := os.WriteFile(m.out("bad.gguf"), []byte("GGUF no"), 0o644); err == nil {
		m.t.Error("a bad file was taken")
	}
}

// smallModel has two tensors. Equal seeds make equal models.
func smallModel(t testing.TB, seed uint64) string {
	t.Helper()
	name := filepath.Join(tempDir(t), "small.gguf")
	if err := generate(ggufview.Gen{Bytes: 8 << 10, Tensors: 2, Tokens: 10, Seed: seed}, name); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestCheckFindsNothing runs the check on mounts that are as they should be, and
// sees that it changes nothing.
func TestCheckFindsNothing(t *testing.T) {
	source := tempDir(t)
	m := newMount(t, source)
	m.check()
	m.populate()
	m.settled()
	m.check("--full")
	write(t, m.boot("ctl"), []byte("evict c.gguf"))
	write(t, m.boot("models/a.gguf/ctl"), []byte("set test.key string value"))
	m.settled()
	m.check("--full")
	m.expect("c.gguf", "state", "cold")
	f, err := os.Create(m.out("open.gguf")) // somebody is writing
	if err != nil {
		t.Fatal(err)
	}
	write(t, m.out("a.gguf"), read(t, smallModel(t, 3)))
	m.check()
	f.Close()
	m.kill()
	m.run("umount", m.dir)
	if out, code := m.run(binary, "check", m.storeDir()); code != 0 {
		t.Errorf("the store of a killed daemon: %s", out)
	}
	m.start(source)
	m.settled()
	m.check("--full")
}

// storeDir is the one segment store of a mount.
func (m *mount) storeDir() string {
	m.t.Helper()
	locks, err := filepath.Glob(filepath.Join(m.segs, "*.lock"))
	if err != nil || len(locks) != 1 {
		m.t.Fatalf("stores: %v %v", locks, err)
	}
	return strings.TrimSuffix(locks[0], ".lock")
}

func TestCheckExitCodes(t *testing.T) {
	quote(t, "exits with 0 when there is none, 1 otherwise, 2 when it could not look.", "It changes nothing, and what is cold stays cold.")
	empty := tempDir(t)
	for _, c := range []struct {
		args []string
		code int
	}{
		{[]string{"check", empty}, 0},
		{[]string{"check"}, 2},
		{[]string{"check", "--nonsense", empty}, 2},
		{[]string{"check", filepath.Join(empty, "missing")}, 2},
		{[]string{"check", empty, sourceWith(t, "x.gguf", "rubbish")}, 1},
		{[]string{"check", sourceWith(t, ".vbootfs/1", "half")}, 1},
		{[]string{"check", sourceWith(t, "plain", "rubbish")}, 0},
		{[]string{"check", sourceWith(t, "x.gguf", "")}, 0},
	} {
		out, code := (&mount{t: t}).run(binary, c.args...)
		if code != c.code {
			t.Errorf("%v: exit code %d, want %d: %s", c.args, code, c.code, out)
		}
	}
}

func sourceWith(t *testing.T, name, content string) string {
	t.Helper()
	p := filepath.Join(tempDir(t), name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, p, []byte(content))
	return strings.TrimSuffix(p, "/"+name)
}

// fake is a copy of a mount, its SOURCE and its store in ordinary directories,
// so that it can be broken.
type fake struct {
	t   *testing.T
	dir string
}

func (f *fake) at(p string) string { return filepath.Join(f.dir, p) }

// original copies a populated mount.
func original(t *testing.T) *fake {
	t.Helper()
	source := tempDir(t)
	m := newMount(t, source)
	m.populate()
	m.settled()
	f := &fake{t, tempDir(t)}
	must(t, "mkdir", f.at("mnt"))
	must(t, "cp", "-a", m.boot("."), f.at("mnt/vector_boot"))
	must(t, "cp", "-a", source, f.at("source"))
	must(t, "cp", "-a", m.storeDir(), f.at("store"))
	for _, name := range []string{"status", "models/a.gguf/layout.json", "models/c.gguf/layout.json", "models/d/b.gguf/layout.json", "models/d/link.gguf/layout.json"} {
		f.replace("mnt/vector_boot/"+name, m.storeDir(), "STORE", source, "SOURCE")
	}
	m.stop()
	return f
}

// copy makes a fake that this case may break. The files of output/ are links of
// the segments, so that they have the inode numbers which the pages tell.
func (f *fake) copy(t *testing.T) *fake {
	t.Helper()
	g := &fake{t, filepath.Join(tempDir(t), "f")}
	must(t, "mkdir", "-p", g.at("mnt/geometry_os_v7"))
	must(t, "cp", "-al", f.at("mnt/vector_boot"), g.at("mnt"))
	must(t, "cp", "-a", f.at("source"), f.at("store"), g.dir)
	must(t, "cp", "-al", g.at("store/live"), g.at("mnt/geometry_os_v7/output"))
	g.replace("mnt/vector_boot/status", "SOURCE", g.at("source"))
	for _, p := range []string{"a.gguf", "c.gguf", "d/b.gguf", "d/link.gguf"} {
		g.replace("mnt/vector_boot/models/"+p+"/layout.json", "STORE", g.at("store"))
		st, err := os.Stat(g.at("store/live/" + p))
		if err != nil {
			t.Fatal(err)
		}
		b := read(t, g.boot(p, "control"))
		copy(b[32:40], word(st.Sys().(*syscall.Stat_t).Ino))
		g.put("mnt/vector_boot/models/"+p+"/control", b)
	}
	g.lock()
	return g
}

// lock holds the lock of the store as its daemon does.
func (f *fake) lock() {
	f.t.Helper()
	l, err := os.Create(f.at("store.lock"))
	if err == nil {
		err = unix.Flock(int(l.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { l.Close() })
}

func word(n uint64) []byte {
	b := make([]byte, 8)
	for i := range b {
		b[i] = byte(n >> (8 * i))
	}
	return b
}

// put replaces the content of a file and keeps its times.
func (f *fake) put(p string, b []byte) {
	f.t.Helper()
	st, err := os.Stat(f.at(p))
	if err != nil {
		f.t.Fatal(err)
	}
	must(f.t, "rm", f.at(p)) // other names keep what they have
	write(f.t, f.at(p), b)
	if err := os.Chtimes(f.at(p), time.Time{}, st.ModTime()); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) replace(p string, pairs ...string) {
	f.t.Helper()
	f.put(p, []byte(strings.NewReplacer(pairs...).Replace(string(read(f.t, f.at(p))))))
}

// flip changes the last byte of a file.
func (f *fake) flip(p string) {
	f.t.Helper()
	b := read(f.t, f.at(p))
	b[len(b)-1] ^= 1
	f.put(p, b)
}

// set changes bytes of the control page of a.gguf.
func (f *fake) set(off int, with []byte) {
	f.t.Helper()
	const p = "mnt/vector_boot/models/a.gguf/control"
	b := read(f.t, f.at(p))
	copy(b[off:], with)
	f.put(p, b)
}

func (f *fake) boot(p, name string) string { return f.at("mnt/vector_boot/models/" + p + "/" + name) }

// found runs the check on the fake mount.
func (f *fake) found(path string) string {
	f.t.Helper()
	c := &checker{}
	var out, notes bytes.Buffer
	_ = c.run([]string{f.at(path)}, &out, &notes)
	if notes.Len() > 0 {
		f.t.Errorf("not everything was checked: %s", &notes)
	}
	return out.String()
}

// TestCheckFinds breaks each invariant in turn.
func TestCheckFinds(t *testing.T) {
	from := original(t)
	if found := from.copy(t).found("mnt"); found != "" {
		t.Fatalf("the copy is not right to begin with:\n%s", found)
	}
	for i, b := range breaks {
		t.Run(fmt.Sprint(i, " ", b.want), func(t *testing.T) {
			f := from.copy(t)
			b.do(f)
			if found := f.found(b.path()); !strings.Contains(found, b.want) {
				t.Errorf("want %q, found:\n%s", b.want, found)
			}
		})
	}
}

// TestCheckSamples compares large files by samples, and whole when told to.
func TestCheckSamples(t *testing.T) {
	const size = 3 * wholeUpTo
	zero := zeros{}
	for _, c := range []struct {
		full      bool
		at, found int64
	}{
		{false, 0, 0}, {false, size - 1, size - piece}, {false, piece + 1, -1},
		{true, piece + 1, piece}, {true, size - 1, size - piece}, {true, -1, -1},
	} {
		off, err := (&checker{full: c.full}).differ(zero, zeros{c.at: 1}, size)
		if err != nil || off != c.found {
			t.Errorf("full %v, byte %d: found %d, want %d: %v", c.full, c.at, off, c.found, err)
		}
	}
}

// zeros is a file without end of zeros, but for some bytes.
type zeros map[int64]byte

func (z zeros) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for at, b := range z {
		if at >= off && at < off+int64(len(p)) {
			p[at-off] = b
		}
	}
	return len(p), nil
}
