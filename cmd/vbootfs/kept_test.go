package main

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// small is a tmpfs to be SOURCE, which a test can fill up or make read-only.
func small(t *testing.T, options string) string {
	t.Helper()
	dir := tempDir(t)
	if err := unix.Mount("none", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func remount(t *testing.T, dir string, flags uintptr, options string) {
	t.Helper()
	if err := unix.Mount("none", dir, "", flags|unix.MS_REMOUNT, options); err != nil {
		t.Fatal(err)
	}
}

// refusedStart runs the program where it cannot mount.
func (m *mount) refusedStart(source, want string) {
	m.t.Helper()
	out, code := m.run(binary, source, m.dir, "-o", "segdir="+m.segs+",log="+m.logFile())
	if code == 0 || !strings.Contains(out, want) {
		m.t.Errorf("exit code %d, want a failure with %q: %s", code, want, out)
	}
}

func TestUnsavedModelsOutliveAFailedUnmount(t *testing.T) {
	a := makeModel(t, "2M", 1)
	source := small(t, "size=1m")
	m := newMount(t, source)
	m.put(a, "a.gguf")
	m.stop()
	if text := string(read(t, m.logFile())); !strings.Contains(text, "a.gguf was not written to SOURCE") {
		t.Errorf("the log does not say what was not saved: %s", text)
	}
	if err := os.Remove(m.logFile()); err != nil { // the complaint was wanted
		t.Fatal(err)
	}
	remount(t, source, 0, "size=16m")
	m.start(source)
	same(t, m.boot("models/a.gguf/model.gguf"), read(t, a))
	m.expect("a.gguf", "state", "loaded")
	m.stop()
	same(t, source+"/a.gguf", read(t, a))
}

func TestUnsavedModelsOutliveAFailedStart(t *testing.T) {
	a := makeModel(t, "1M", 1)
	source := small(t, "size=512k")
	m := newMount(t, source)
	m.put(a, "a.gguf")
	m.kill()
	remount(t, source, unix.MS_RDONLY, "size=512k")
	m.refusedStart(source, "SOURCE must be writable")
	remount(t, source, 0, "size=16m")
	m.start(source)
	same(t, m.boot("models/a.gguf/model.gguf"), read(t, a))
}

func TestModelsInMemoryOutliveAFailedStart(t *testing.T) {
	a := makeModel(t, "1M", 1)
	m := newMount(t, "none")
	m.put(a, "a.gguf")
	m.refusedStart("none", "already mounted")
	m.kill()
	if err := unix.Unmount(m.dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(m.dir); err != nil {
		t.Fatal(err)
	}
	write(t, m.dir, nil) // a file, on which no directory can be mounted
	m.refusedStart("none", "not a directory")
	if err := os.Remove(m.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	m.start("none")
	same(t, m.boot("models/a.gguf/model.gguf"), read(t, a))
}

// TestOneDaemonPerSource starts a second one that would keep its segments elsewhere.
func TestOneDaemonPerSource(t *testing.T) {
	promise(t, security, "Two daemons never write to the same SOURCE.")
	a := makeModel(t, "1M", 1)
	source := tempDir(t)
	m := newMount(t, source)
	m.put(a, "a.gguf")
	n := unmounted(t)
	n.refusedStart(source, "in use by another vbootfs")
	write(t, m.boot("ctl"), []byte("sync"))
	same(t, source+"/a.gguf", read(t, a))
}
