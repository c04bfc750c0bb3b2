package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// Not among them: mmap, without which Go has no memory and the daemon ends, and
// copy_file_range, which fails on a tmpfs only when the machine does.

// failingCalls are system calls of the daemon that fail, what is done meanwhile,
// and whether that may work all the same.
var failingCalls = []struct {
	spec string
	want unix.Errno // 0: any error, or none
	do   func(m *mount, model string) error
}{
	{"openat:error=EMFILE", unix.EMFILE, load},
	{"openat:error=ENFILE:when=1+3", 0, load},
	{"fsync:error=EIO", unix.EIO, loadSynced},
	{"fsync:error=ENOSPC:when=2+2", 0, loadSynced},
	{"renameat2:error=EIO", unix.EIO, replace},
	{"renameat2:error=ENOSPC:when=2+2", 0, replace},
	{"renameat,renameat2:error=EIO", unix.EIO, loadSynced},
	{"unlinkat:error=EIO", unix.EIO, func(m *mount, _ string) error { return os.Remove(m.out("a.gguf")) }},
	{"fallocate:error=ENOSPC", 0, load},
	{"ftruncate:error=ENOSPC", 0, replace},
	{"pwrite64:error=ENOSPC", 0, commit},
	{"setxattr:error=ENOSPC", 0, replace},
	{"linkat:error=EMLINK", 0, func(m *mount, _ string) error { return os.Link(m.out("a.gguf"), m.out("l.gguf")) }},
	{"mkdirat:error=ENOSPC", unix.ENOSPC, func(m *mount, _ string) error { return os.Mkdir(m.out("d"), 0o755) }},
	{"statx,newfstatat:error=EIO:when=2+3", 0, loadSynced},
	{"fchmod,fchown:error=EPERM", 0, loadSynced},
}

func load(m *mount, model string) error {
	return os.WriteFile(m.out("new.gguf"), read(m.t, model), 0o644)
}

func loadSynced(m *mount, model string) error {
	return writeSynced(m.out("new.gguf"), read(m.t, model))
}

func replace(m *mount, model string) error {
	return os.WriteFile(m.out("a.gguf"), read(m.t, model), 0o644)
}

// commit changes a tensor to what it is.
func commit(m *mount, _ string) error {
	name := m.boot("models/a.gguf/tensors/output_norm.weight/data")
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return os.WriteFile(name, b, 0)
}

// TestFailingSystemCalls lets calls of the daemon fail.
func TestFailingSystemCalls(t *testing.T) {
	promise(t, semanticsPage, "When a system call of the daemon fails, the program whose request it was gets the error number, "+
		"everything that was there stays, and the next request works.")
	first, second := makeModel(t, "300K", 1), makeModel(t, "300K", 2)
	for i, c := range failingCalls {
		t.Run(fmt.Sprint(i, " ", c.spec), func(t *testing.T) {
			m := newMount(t, tempDir(t))
			m.synced("a.gguf", read(t, first))
			stop := m.inject(c.spec)
			err := c.do(m, second)
			stop()
			if c.want != 0 && !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			m.wholeOr(first, second)
			m.settled()
			m.check("--full")
			if err := errors.Join(load(m, second), replace(m, second)); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			m.holds("new.gguf", read(t, second))
			m.holds("a.gguf", read(t, second))
			m.settled()
			m.check("--full")
			m.calm()
		})
	}
}

// wholeOr wants a.gguf, where it is, to be one of two models.
func (m *mount) wholeOr(models ...string) {
	m.t.Helper()
	have, err := os.ReadFile(m.out("a.gguf"))
	for _, name := range models {
		if string(have) == string(read(m.t, name)) {
			return
		}
	}
	if !errors.Is(err, unix.ENOENT) {
		m.t.Errorf("a.gguf has %d bytes that nobody wrote: %v", len(have), err)
	}
}

// calm ends the daemon and forgets the errors that it was made to log.
func (m *mount) calm() {
	m.t.Helper()
	m.stop()
	if err := os.Truncate(m.logFile(), 0); err != nil && !errors.Is(err, unix.ENOENT) {
		m.t.Error(err)
	}
}

// killPoints are system calls before which the daemon is killed.
const killPoints = "renameat2,unlinkat,fsync,setxattr,removexattr,copy_file_range,pwrite64,linkat,fallocate,ftruncate,mkdirat,renameat"

// TestKillsAtSystemCalls kills the daemon exactly before its n-th call of those
// that change something, in a fixed course of changes, and while it recovers.
func TestKillsAtSystemCalls(t *testing.T) {
	first, second := makeModel(t, "300K", 1), makeModel(t, "300K", 2)
	step := setting(t, "VBOOTFS_KILL_STEP", 9)
	for n := 1 + setting(t, "VBOOTFS_KILL_SEED", 1)%step; n < 64; n += step {
		t.Run(fmt.Sprint("call ", n), func(t *testing.T) {
			m := newMount(t, tempDir(t))
			source := m.sourceOf()
			m.synced("a.gguf", read(t, first))
			m.synced("keep.gguf", read(t, first))
			m.inject(fmt.Sprintf("%s:signal=SIGKILL:when=%d", killPoints, n))
			err := m.course(first, second)
			if !gone(err, m.dir) {
				_ = unix.Kill(m.pid, unix.SIGKILL) // the course has fewer calls
			}
			if err != nil && !gone(err, m.dir) {
				t.Errorf("the course: %v", err)
			}
			m.wait()
			m.start(source)
			m.wholeOr(first, second)
			m.holds("keep.gguf", read(t, first))
			m.settled()
			m.check("--full")
			m.stop()
		})
	}
}

// course makes some changes.
func (m *mount) course(first, second string) error {
	return errors.Join(replace(m, second), commit(m, ""), loadSynced(m, first),
		os.Rename(m.out("new.gguf"), m.out("b.gguf")), os.Link(m.out("b.gguf"), m.out("l.gguf")),
		os.Remove(m.out("l.gguf")), m.evict("b.gguf"),
		os.Mkdir(m.out("d"), 0o755), os.Rename(m.out("b.gguf"), m.out("d/b.gguf")),
		exec.Command("cp", first, m.out("x.part")).Run(), os.Rename(m.out("x.part"), m.out("a.gguf")))
}

// evict sends a model to SOURCE, unless it is in use.
func (m *mount) evict(p string) error {
	err := os.WriteFile(m.boot("models/"+p+"/ctl"), []byte("evict"), 0)
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}

// sourceOf is SOURCE as status names it.
func (m *mount) sourceOf() string {
	m.t.Helper()
	status, err := lines(m.boot("status"))
	if err != nil {
		m.t.Fatal(err)
	}
	return status["source"]
}
