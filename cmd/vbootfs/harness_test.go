package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// These tests use the program as its users do: they mount it, and let other
// programs read and write.

var (
	binary  string // the program under test
	scratch string // holds it, and everything else that a run makes
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if text := os.Getenv(clientEnv); text != "" {
		return client(text)
	}
	if dir := os.Getenv(diskEnv); dir != "" {
		return disk(dir)
	}
	var err error
	if scratch, err = os.MkdirTemp("", "vbootfs-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(scratch)
	binary = filepath.Join(scratch, "vbootfs")
	// Daemons built with -race report beside their logs, and end at once.
	os.Setenv("GORACE", "atexit_sleep_ms=0 log_path="+filepath.Join(scratch, "race"))
	args := []string{"build", "-o", binary}
	if raced() {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v: %s\n", err, out)
		return 1
	}
	return m.Run()
}

// raced reports whether this test was built with -race.
func raced() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// patience bounds what should take no time at all. Nothing is measured with it.
const patience = time.Minute

// mount is a mounted file system and its daemon. It is checked at the end of the
// test that it leaves nothing behind.
type mount struct {
	t       testing.TB
	dir     string
	segs    string // holds the segment store
	private string // holds dir, segs and logs
	proc    int    // pidfd of the daemon, -1 when it is known to have ended
	pid     int
}

// newMount mounts SOURCE, or "none", with options for -o.
func newMount(t testing.TB, source string, opts ...string) *mount {
	t.Helper()
	m := unmounted(t)
	m.start(source, opts...)
	return m
}

// unmounted is a mountpoint that the test mounts by itself.
func unmounted(t testing.TB) *mount {
	t.Helper()
	m := &mount{t: t, private: tempDir(t), proc: -1}
	m.dir, m.segs = filepath.Join(m.private, "mnt"), filepath.Join(m.private, "segments")
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.end)
	return m
}

// start runs the program as users do: it returns when the mount answers.
func (m *mount) start(source string, opts ...string) {
	m.t.Helper()
	opts = append(opts, "segdir="+m.segs, "log="+m.logFile())
	if out, code := m.run(binary, source, m.dir, "-o", strings.Join(opts, ",")); code != 0 {
		m.t.Fatalf("exit code %d: %s", code, out)
	}
	m.adopt()
}

func (m *mount) logFile() string { return filepath.Join(m.private, "log") }

// adopt finds the daemon of m.dir.
func (m *mount) adopt() {
	m.t.Helper()
	m.pid = daemonOf(m.dir)
	fd, err := unix.PidfdOpen(m.pid, 0)
	if err != nil {
		m.t.Fatalf("no daemon serves %s: %v", m.dir, err)
	}
	m.proc = fd
}

// daemonOf is the process of this program that was started for a directory, 0 if there is none.
func daemonOf(dir string) int {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lines {
		line, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(line, []byte("\x00"+dir+"\x00")) {
			continue
		}
		if exe, err := os.Readlink(filepath.Dir(name) + "/exe"); err == nil && exe == binary {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			return pid
		}
	}
	return 0
}

// wait returns when the daemon has ended.
func (m *mount) wait() {
	m.t.Helper()
	if m.proc < 0 {
		return
	}
	fds := []unix.PollFd{{Fd: int32(m.proc), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(patience.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if n != 1 {
			m.t.Errorf("the daemon of %s does not end", m.dir)
			_ = unix.Kill(m.pid, unix.SIGKILL)
		}
		break
	}
	unix.Close(m.proc)
	m.proc = -1
}

// stop unmounts and waits for the daemon.
func (m *mount) stop() {
	m.t.Helper()
	if m.proc < 0 {
		return
	}
	if err := unmountSoon(m.dir); err != nil {
		m.t.Errorf("umount: %v", err)
		_ = unix.Kill(m.pid, unix.SIGTERM)
	}
	m.wait()
}

// unmountSoon is umount of what nobody uses. Others of the machine who watch all
// mounts (fanotify, df) have a file of it open now and then, for a moment.
func unmountSoon(dir string) error {
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		out, err := exec.Command("umount", dir).CombinedOutput()
		if err == nil {
			return nil
		}
		if !bytes.Contains(out, []byte("busy")) || time.Now().After(end) {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
}

// kill ends the daemon as nothing can prepare for.
func (m *mount) kill() {
	m.t.Helper()
	if err := unix.Kill(m.pid, unix.SIGKILL); err != nil {
		m.t.Fatal(err)
	}
	m.wait()
}

// complaints are lines of a log that no test expects.
var complaints = regexp.MustCompile(`(?m)^.*(level=(error|fatal|panic)|panic:|DATA RACE).*$`)

// end checks that nothing is left: no mount, no segment, no process, no complaint.
func (m *mount) end() {
	m.stop()
	left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(m.private))
	for _, l := range left {
		m.t.Errorf("left mounted: %s", l.Mountpoint)
		_ = unix.Unmount(l.Mountpoint, unix.MNT_DETACH)
	}
	if err != nil {
		m.t.Error(err)
	}
	if pid := daemonOf(m.dir); pid != 0 {
		m.t.Errorf("left running: process %d", pid)
	}
	segs, err := os.ReadDir(m.segs)
	if len(segs) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
		m.t.Errorf("left in the segment directory: %v %v", segs, err)
	}
	races, _ := filepath.Glob(filepath.Join(scratch, "race.*"))
	for _, name := range append(races, m.logFile()) {
		if text, _ := os.ReadFile(name); complaints.Match(text) {
			m.t.Errorf("the daemon complained:\n%s", text)
		}
		os.Remove(name) // told once
	}
}

// run runs a program and returns what it printed and its exit code.
func (m *mount) run(name string, args ...string) (string, int) {
	m.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	return output(m.t, cmd)
}

func output(t testing.TB, cmd *exec.Cmd) (string, int) {
	t.Helper()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// must runs a program that has to work.
func must(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, code := output(t, exec.Command(name, args...))
	if code != 0 {
		t.Fatalf("%s %v: exit code %d: %s", name, args, code, out)
	}
	return out
}

// out is a path below output/, boot one below vector_boot/.
func (m *mount) out(p string) string  { return filepath.Join(m.dir, "geometry_os_v7/output", p) }
func (m *mount) boot(p string) string { return filepath.Join(m.dir, "vector_boot", p) }

// of is the content of models/P/NAME.
func (m *mount) of(p, name string) string {
	m.t.Helper()
	return string(read(m.t, m.boot(filepath.Join("models", p, name))))
}

// expect checks the content of models/P/NAME, a line.
func (m *mount) expect(p, name, want string) {
	m.t.Helper()
	if have := strings.TrimSuffix(m.of(p, name), "\n"); have != want {
		m.t.Errorf("models/%s/%s is %q, want %q", p, name, have, want)
	}
}

// put copies a file in with cp.
func (m *mount) put(from, p string) {
	m.t.Helper()
	must(m.t, "cp", from, m.out(p))
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// same checks that a file holds exactly these bytes.
func same(t testing.TB, name string, want []byte) {
	t.Helper()
	if have := read(t, name); !bytes.Equal(have, want) {
		t.Errorf("%s: %d bytes differ from the %d wanted", name, len(have), len(want))
	}
}

// tempDir is a directory below scratch, so that mounts are easy to find.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "t")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// python is an interpreter that has gguf-py, NumPy and xllamacpp.
func python(t testing.TB) string {
	t.Helper()
	name := os.Getenv("VBOOTFS_PYTHON")
	if name == "" {
		name = "python3"
	}
	if out, err := exec.Command(name, "-c", "import gguf, numpy, xllamacpp").CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s\nscripts/test installs what these tests need", name, err, out)
	}
	return name
}

// models are whole valid models: the shared collection where this checkout has
// it beside it, which CI must, and otherwise the few that are committed.
func models(t testing.TB) (names []string) {
	t.Helper()
	dirs := []string{"real", "tiny", "quant", "variants"}
	for i, d := range dirs {
		dirs[i] = filepath.Join("../../../shared/data", d, "*.gguf")
	}
	if _, err := os.Stat("../../../shared/data"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("CI needs the test data in ../shared/data")
		}
		dirs = []string{"../../ggufview/testdata/*.gguf", "../../ggufview/testdata/malformed/ok_*.gguf"}
	}
	for _, pattern := range dirs {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("no models %s: %v", pattern, err)
		}
		names = append(names, found...)
	}
	return slices.DeleteFunc(names, func(n string) bool { return strings.Contains(n, "trunc") })
}

// makeModel makes a model of about the given size. Equal seeds make equal models.
func makeModel(t testing.TB, size string, seed int) string {
	t.Helper()
	name := filepath.Join(tempDir(t), fmt.Sprintf("seed%d.gguf", seed))
	must(t, binary, "gen-model", "--size", size, "--tokens", "100", "--seed", strconv.Itoa(seed), name)
	return name
}
