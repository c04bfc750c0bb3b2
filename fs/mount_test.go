package fs

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"vbootfs/ggufview"
)

func TestMain(m *testing.M) {
	// This process is daemon and client at once. While it starts a program, one
	// thread waits in the kernel until the child has closed what it inherited, and
	// each close is a request to the daemon. A garbage collection at that moment
	// would stop the daemon and wait for that thread for ever: do without.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(4 << 30)
	for name, value := range map[string]string{"nofailfile": "true", "checks": "40"} { // the seed of a failure is enough
		if err := flag.Set("rapid."+name, value); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

// logBuffer collects the log; a panic in it fails the test.
type logBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.String()
}

// site is a mounted file system of a test.
type site struct {
	*Mount
	mnt, out, vb string // mountpoint, its output directory, its vector_boot
	log          *logBuffer
}

// mount mounts for one test. Afterwards nothing may be left: no mount, no
// segment, no descriptor of a file of the store, no panic in the log.
func mount(t *testing.T, change ...func(*Options)) *site {
	t.Helper()
	s := &site{mnt: t.TempDir(), log: &logBuffer{}}
	log := logrus.New()
	log.SetOutput(s.log)
	o := Options{Source: "none", Mountpoint: s.mnt, SegmentDir: t.TempDir(), Limit: 1 << 30, Log: log, noPoll: true}
	for _, f := range change {
		f(&o)
	}
	m, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Mount = m
	s.out = filepath.Join(s.mnt, "geometry_os_v7/output")
	s.vb = filepath.Join(s.mnt, "vector_boot")
	t.Cleanup(func() { s.end(t, o.SegmentDir) })
	return s
}

func (s *site) end(t *testing.T, segments string) {
	if err := s.Unmount(context.Background()); err != nil {
		t.Error(err)
	}
	if strings.Contains(s.log.String(), "panic") {
		t.Errorf("the daemon panicked:\n%s", s.log)
	}
	for _, dir := range []string{s.mnt, segments} {
		if found, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir)); err != nil || len(found) > 0 {
			t.Errorf("left mounted: %v %v", found, err)
		}
	}
	if left, err := os.ReadDir(segments); err == nil && len(left) > 0 {
		t.Errorf("segments left: %v", left)
	}
	checkDescriptors(t, segments)
}

// checkDescriptors fails when this process still holds a file of a store.
func checkDescriptors(t *testing.T, dir string) {
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ents {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && (strings.HasPrefix(target, dir) || strings.HasPrefix(target, "/live") || strings.HasPrefix(target, "/stage")) {
			t.Errorf("descriptor %s still holds %s", e.Name(), target)
		}
	}
}

// model makes the bytes of a small valid GGUF; another seed gives other weights.
func model(t *testing.T, seed uint64) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := (ggufview.Gen{Seed: seed, Layers: 1, Bytes: 64 << 10}).WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func want(t *testing.T, path, content string) {
	t.Helper()
	if have := read(t, path); have != content {
		t.Errorf("%s is %.80q, want %.80q", path, have, content)
	}
}

func wantErr(t *testing.T, what string, have, want error) {
	t.Helper()
	if !errors.Is(have, want) {
		t.Errorf("%s: %v, want %v", what, have, want)
	}
}

// modes runs a test with and without passthrough, and as on a kernel without epochs.
func modes(t *testing.T, test func(t *testing.T, s *site)) {
	t.Run("default", func(t *testing.T) { test(t, mount(t)) })
	t.Run("old kernel", func(t *testing.T) { test(t, mount(t, func(o *Options) { o.oldKernel = true })) })
	t.Run("daemon", func(t *testing.T) { test(t, mount(t, func(o *Options) { o.NoPass = true })) })
}
