package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMemoryIsFull fills the shared memory in each way.
func TestMemoryIsFull(t *testing.T) {
	promise(t, semanticsPage, "At the limit of shared memory `write()` and `fallocate()` fail with ENOSPC, other models are untouched, "+
		"`df` tells the truth, and the memory of what is removed comes back.")
	for _, opt := range []string{"size=16M", "size=16M,no_passthrough"} {
		t.Run(opt, func(t *testing.T) {
			m := newMount(t, tempDir(t), opt)
			a := read(t, makeModel(t, "6M", 1))
			m.synced("a.gguf", a)
			big := makeModel(t, "20M", 2)
			if err := os.WriteFile(m.out("big.gguf"), read(t, big), 0o644); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("writing more than there is: %v", err)
			}
			f, err := os.Create(m.out("reserved"))
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Fallocate(int(f.Fd()), 0, 0, 32<<20); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("reserving more than there is: %v", err)
			}
			f.Close()
			m.holds("a.gguf", a)
			m.checkStatfs(16 << 20)
			must(t, "rm", "-f", m.out("big.gguf"), m.out("reserved"))
			m.until("the memory comes back", func() bool { return m.number("resident_bytes") < 8<<20 })
			m.synced("b.gguf", a)
			m.holds("b.gguf", a)
			m.settled()
			m.check("--full")
		})
	}
}

// TestLittleMemory starts a daemon that may have little memory of its own.
func TestLittleMemory(t *testing.T) {
	promise(t, semanticsPage, "A daemon that gets no memory for a request fails that request; it and what is loaded stay, or, killed for it, are taken over by the next.")
	from := makeModel(t, "3M", 1)
	source := tempDir(t)
	m := newMount(t, source)
	m.synced("a.gguf", read(t, from))
	group := memoryGroup(t)
	write(t, filepath.Join(group, "cgroup.procs"), []byte(fmt.Sprint(m.pid)))
	write(t, filepath.Join(group, limitName(group)), []byte("32M"))
	for i := range 20 { // the kernel kills it, or it manages
		if err := os.WriteFile(m.out(fmt.Sprintf("%d.gguf", i)), read(t, from), 0o644); err != nil {
			break
		}
	}
	if unix.Statfs(m.dir, new(unix.Statfs_t)) == nil {
		_ = unix.Kill(m.pid, unix.SIGKILL)
	}
	m.wait()
	m.start(source)
	m.holds("a.gguf", read(t, from))
	m.settled()
	m.check("--full")
}

// memoryGroup is a control group of its own, of either version.
func memoryGroup(t *testing.T) string {
	t.Helper()
	for _, kind := range [][]string{{"cgroup", "memory"}, {"cgroup2", ""}} {
		dir := tempDir(t)
		if unix.Mount("none", dir, kind[0], 0, kind[1]) != nil {
			continue
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		if kind[1] == "" {
			if os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory"), 0) != nil {
				continue
			}
		}
		group := filepath.Join(dir, fmt.Sprintf("vbootfs-test-%d", os.Getpid()))
		if err := os.Mkdir(group, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(group) })
		if limitName(group) != "" {
			return group
		}
	}
	t.Fatal("this machine has no control group for memory")
	return ""
}

// limitName is the file with the limit of a group, "" if it has none.
func limitName(group string) string {
	for _, name := range []string{"memory.limit_in_bytes", "memory.max"} {
		if _, err := os.Stat(filepath.Join(group, name)); err == nil {
			return name
		}
	}
	return ""
}

// TestSegmentsTakenAway removes and cuts segments as only root can: through a
// mount of its own of the tmpfs they are on.
func TestSegmentsTakenAway(t *testing.T) {
	promise(t, semanticsPage, "A segment that root cuts or removes behind the daemon's back costs that model only: the daemon goes on, and `vbootfs check` names it.")
	from := makeModel(t, "3M", 1)
	m := newMount(t, "none")
	m.put(from, "a.gguf")
	m.put(from, "b.gguf")
	m.put(from, "c.gguf")
	live := filepath.Join(m.storeDir(), "live")
	must(t, "unshare", "-m", "sh", "-ec", `mount -o remount,bind,rw "$0"; truncate -s 4096 "$0/live/a.gguf"; rm "$0/live/b.gguf"`, filepath.Dir(live))
	for _, name := range []string{"model.gguf", "tensors/output.weight/data", "tensors/output.weight/f32.npy", "sha256", "report.html"} {
		_, _ = os.ReadFile(m.boot("models/a.gguf/" + name)) // whatever it says: the daemon must live
		_, _ = os.ReadFile(m.boot("models/b.gguf/" + name))
	}
	m.holds("c.gguf", read(t, from))
	out, code := m.run(binary, "check", m.dir)
	if code != 1 || !strings.Contains(out, "a.gguf") || !strings.Contains(out, "b.gguf") || strings.Contains(out, "c.gguf") {
		t.Errorf("check: exit code %d: %s", code, out)
	}
	m.put(from, "a.gguf") // and all is well again
	m.put(from, "b.gguf")
	m.holds("a.gguf", read(t, from))
	m.check("--full")
}

// TestReadersHold keeps mappings while their model is changed in every way.
func TestReadersHold(t *testing.T) {
	promise(t, semanticsPage, "Who has a model open or mapped keeps its bytes when it is replaced, removed, renamed or evicted.")
	first, second := makeModel(t, "3M", 1), makeModel(t, "3M", 2)
	m := newMount(t, tempDir(t))
	for _, do := range []struct {
		name string
		f    func() error
	}{
		{"replace", func() error { return replace(m, second) }},
		{"replace by a rename", func() error {
			return errors.Join(os.WriteFile(m.out("x.part"), read(t, second), 0o644), os.Rename(m.out("x.part"), m.out("a.gguf")))
		}},
		{"rename", func() error { return os.Rename(m.out("a.gguf"), m.out("b.gguf")) }},
		{"rename to no model", func() error { return os.Rename(m.out("a.gguf"), m.out("b")) }},
		{"evict", func() error { return os.WriteFile(m.boot("models/a.gguf/ctl"), []byte("evict"), 0) }},
		{"remove", func() error { return os.Remove(m.out("a.gguf")) }},
	} {
		m.synced("a.gguf", read(t, first))
		mapped, err := mapFile(m.out("a.gguf"))
		if err != nil {
			t.Fatal(err)
		}
		if err := do.f(); err != nil {
			t.Errorf("%s: %v", do.name, err)
		}
		if !bytes.Equal(mapped, read(t, first)) {
			t.Errorf("%s changed what a reader has mapped", do.name)
		}
		_ = unix.Munmap(mapped)
	}
	m.settled()
	m.check("--full")
}
