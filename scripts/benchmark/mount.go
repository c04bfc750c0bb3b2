package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mount is a mounted vbootfs.
type mount struct {
	b      *bench
	source string
	opts   []string
	dir    string
}

func (m *mount) out(p string) string   { return filepath.Join(m.dir, "geometry_os_v7/output", p) }
func (m *mount) boot(p string) string  { return filepath.Join(m.dir, "vector_boot", p) }
func (m *mount) of(p, f string) string { return filepath.Join(m.dir, "vector_boot/models", p, f) }

// main is a mount without SOURCE that groups share; daemon the same without passthrough.
func (b *bench) main() (*mount, error)   { return b.share() }
func (b *bench) daemon() (*mount, error) { return b.share("no_passthrough") }

func (b *bench) share(opts ...string) (*mount, error) {
	key := strings.Join(opts, ",")
	if m := b.shared[key]; m != nil {
		return m, nil
	}
	m, err := b.newMount("none", opts...)
	if err == nil {
		b.shared[key] = m
	}
	return m, err
}

func (b *bench) newMount(source string, opts ...string) (*mount, error) {
	b.serial++
	m := &mount{b: b, source: source, opts: opts, dir: filepath.Join(b.tmp, fmt.Sprintf("mnt%d", b.serial))}
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		return nil, err
	}
	return m, m.start()
}

// start mounts; when it returns, the mount answers.
func (m *mount) start() error {
	limit := 3*m.b.size + 1<<30
	opts := append([]string{"segdir=" + filepath.Join(m.b.shm, "segments"), "size=" + strconv.FormatInt(limit, 10)}, m.opts...)
	return m.b.command(m.b.binary, m.source, m.dir, "-o", strings.Join(opts, ","))
}

// stop unmounts and waits for the daemon.
func (m *mount) stop() error {
	pid := m.pid()
	if err := unmount(m.dir); err != nil {
		return err
	}
	return waitPid(pid)
}

// kill ends the daemon as nothing can prepare for.
func (m *mount) kill() error {
	pid := m.pid()
	if pid == 0 {
		return errors.New("no daemon")
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return err
	}
	return waitPid(pid)
}

// pid is the daemon.
func (m *mount) pid() int {
	for _, p := range daemons(m.dir) {
		return p
	}
	return 0
}

// rss is the memory of the daemon: segments are not in it.
func (m *mount) rss() int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.pid()))
	for l := range strings.Lines(string(text)) {
		if f := strings.Fields(l); len(f) > 1 && f[0] == "RssAnon:" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n << 10
		}
	}
	return 0
}

// load puts a file in unless it is there already.
func (m *mount) load(file, name string) error {
	if _, err := os.Stat(m.out(name)); err == nil {
		return nil
	}
	return copyFile(file, m.out(name))
}

// daemons are the processes that serve a directory or one below it.
func daemons(dir string) (pids []int) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lines {
		line, _ := os.ReadFile(name)
		args := bytes.Split(line, []byte{0})
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		at := slices.IndexFunc(args, func(a []byte) bool { return string(a) == dir || bytes.HasPrefix(a, []byte(dir+"/mnt")) })
		if at == 2 && pid != os.Getpid() { // PROGRAM SOURCE DIR
			pids = append(pids, pid)
		}
	}
	return pids
}

// endDaemons ends what still serves below a directory of a run.
func endDaemons(dir string) {
	for _, pid := range daemons(dir) {
		_ = unix.Kill(pid, unix.SIGKILL)
		_ = waitPid(pid)
	}
}

// patience bounds what should take a moment.
const patience = 30 * time.Second

// waitPid returns when a process that need not be a child has ended.
func waitPid(pid int) error {
	if pid == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it has
	}
	defer unix.Close(fd)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(patience.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if n != 1 {
			return fmt.Errorf("process %d does not end", pid)
		}
		return err
	}
}

// mountsBelow are the mount points in a directory, the deepest first.
func mountsBelow(dir string) (found []string) {
	text, _ := os.ReadFile("/proc/self/mountinfo")
	for l := range strings.Lines(string(text)) {
		if f := strings.Fields(l); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			found = append(found, f[4])
		}
	}
	slices.Reverse(found)
	return found
}

func unmount(dir string) error {
	if os.Geteuid() != 0 {
		return exec.Command("fusermount3", "-u", dir).Run()
	}
	return unix.Unmount(dir, 0)
}

// command runs a program that has to work.
func (b *bench) command(name string, args ...string) error {
	cmd := exec.CommandContext(b.ctx, name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(name), err, firstLine(string(out)))
	}
	return nil
}

// shell is a line for sh, with files as $1, $2 ...
func (b *bench) shell(line string, files ...string) func() error {
	return func() error { return b.command("sh", append([]string{"-c", line, "sh"}, files...)...) }
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 1<<20))
	return errors.Join(err, dst.Close())
}

// forget drops what the kernel has cached of a file.
func forget(f *os.File) error { return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }

// pass says whether the mount uses passthrough: "on" or "off".
func (m *mount) pass() string {
	text, _ := os.ReadFile(m.boot("status"))
	for l := range strings.Lines(string(text)) {
		if f := strings.Fields(l); len(f) == 2 && f[0] == "passthrough" {
			return f[1]
		}
	}
	return "unknown"
}
