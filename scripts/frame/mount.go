package frame

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Mount is a mounted vbootfs.
type Mount struct {
	Binary string // the program
	Source string // or "none"
	Dir    string // mount point
	Opts   []string
}

// Out is a path below output, Boot one below vector_boot.
func (m *Mount) Out(p string) string { return filepath.Join(m.Dir, "geometry_os_v7/output", p) }

// Boot is a path below vector_boot.
func (m *Mount) Boot(p string) string { return filepath.Join(m.Dir, "vector_boot", p) }

// Of is a file of a model.
func (m *Mount) Of(p, file string) string { return filepath.Join(m.Boot("models"), p, file) }

// Start mounts; when it returns, the mount answers.
func (m *Mount) Start(ctx context.Context) error {
	return Command(ctx, m.Binary, m.Source, m.Dir, "-o", strings.Join(m.Opts, ","))
}

// Stop unmounts and waits for the daemon.
func (m *Mount) Stop() error {
	pid := m.PID()
	if err := Unmount(m.Dir); err != nil {
		return fmt.Errorf("umount %s: %w", m.Dir, err)
	}
	return waitPid(pid)
}

// Kill ends the daemon as nothing can prepare for.
func (m *Mount) Kill() error {
	pid := m.PID()
	if pid == 0 {
		return errors.New("no daemon")
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return err
	}
	return waitPid(pid)
}

// PID is the daemon, 0 when there is none.
func (m *Mount) PID() int {
	for _, p := range daemons(m.Dir) {
		return p
	}
	return 0
}

// RSS is the memory of the daemon in bytes: segments are not in it.
func (m *Mount) RSS() int64 { return kilobytes(fmt.Sprintf("/proc/%d/status", m.PID()), "RssAnon") }

// daemons are the processes that serve a directory or one below it.
func daemons(dir string) (pids []int) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lines {
		line, _ := os.ReadFile(name)
		args := bytes.Split(line, []byte{0}) // PROGRAM SOURCE DIR
		if len(args) < 3 || !strings.HasPrefix(string(args[2])+"/", dir+"/") {
			continue
		}
		if pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name))); pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// patience bounds what should take a moment.
const patience = 5 * time.Minute

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

// Unmount unmounts what nobody uses.
func Unmount(dir string) error {
	if os.Geteuid() != 0 {
		return exec.Command("fusermount3", "-u", dir).Run()
	}
	return unix.Unmount(dir, 0)
}

// Dirs are the directories of a run, one on disk and one in shared memory.
type Dirs struct{ Disk, Shm string }

// MakeDirs makes the directories of a program's run, and removes what earlier
// runs left that were killed. Their number is the process.
func MakeDirs(program string) (d Dirs, err error) {
	prefix := "vbootfs-" + program + "-"
	for _, dir := range []string{os.TempDir(), "/dev/shm"} {
		left, _ := filepath.Glob(filepath.Join(dir, prefix+"*"))
		for _, old := range left {
			pid := strings.TrimPrefix(filepath.Base(old), prefix)
			if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
				_ = clear(old) // what stays is tried again next time
			}
		}
	}
	name := prefix + strconv.Itoa(os.Getpid())
	d = Dirs{filepath.Join(os.TempDir(), name), filepath.Join("/dev/shm", name)}
	if err := os.Mkdir(d.Disk, 0o755); err != nil {
		return d, err
	}
	if err := os.Mkdir(d.Shm, 0o755); err != nil {
		return d, errors.Join(err, os.Remove(d.Disk))
	}
	return d, nil
}

// Remove removes them, with the mounts in them and their daemons.
func (d Dirs) Remove() error { return errors.Join(clear(d.Disk), clear(d.Shm)) }

func clear(dir string) error {
	for _, m := range mountsBelow(dir) {
		_ = Unmount(m) // what is busy is detached below
	}
	for _, pid := range daemons(dir) {
		_ = unix.Kill(pid, unix.SIGKILL)
		_ = waitPid(pid)
	}
	for _, m := range mountsBelow(dir) { // segments, or the mount of a daemon that was dead
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
	if left := mountsBelow(dir); len(left) > 0 {
		return fmt.Errorf("still mounted: %v", left)
	}
	return os.RemoveAll(dir)
}
