package main

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// inUse uses a mount in the ways a program can: a file open and mapped, one open
// for writing in the middle, and a working directory.
func inUse(t *testing.T, m *mount, model string) (mapped []byte, letGo func()) {
	t.Helper()
	m.put(model, "a.gguf")
	mapped, err := mapFile(m.out("a.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(m.out("half.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	content := read(t, model)
	if _, err := f.Write(content[:len(content)/2]); err != nil {
		t.Fatal(err)
	}
	program := exec.Command("sleep", "1000")
	program.Dir = m.out("")
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	letGo = sync.OnceFunc(func() {
		_ = unix.Munmap(mapped)
		f.Close() // fails: half a model
		_ = program.Process.Kill()
		_ = program.Wait() // killed
	})
	t.Cleanup(letGo)
	return mapped, letGo
}

// TestSignalsEndIt: a daemon that is told to end does so, whatever uses the mount.
func TestSignalsEndIt(t *testing.T) {
	promise(t, semanticsPage, "SIGTERM and SIGINT end the daemon with exit code 0 also while the mount is in use: it is unmounted, "+
		"what was closed is in SOURCE, no segment stays, and what is mapped stays readable.")
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		t.Run(unix.SignalName(s), func(t *testing.T) {
			from := makeModel(t, "3M", 1)
			source := tempDir(t)
			m := unmounted(t)
			cmd := exec.Command(binary, "-f", source, m.dir, "-o", "segdir="+m.segs+",log="+m.logFile())
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			m.until("the mount answers", func() bool { _, err := os.Stat(m.boot("status")); return err == nil })
			mapped, _ := inUse(t, m, from)
			if err := cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("the daemon: %v", err)
			}
			if !bytes.Equal(mapped, read(t, from)) {
				t.Error("what was mapped has changed")
			}
			same(t, filepath.Join(source, "a.gguf"), read(t, from))
			if ents, err := os.ReadDir(m.dir); err != nil || len(ents) > 0 {
				t.Errorf("still mounted: %v %v", ents, err)
			}
		})
	}
}

// TestUnmountWhileBusy tries every way to take the mount away.
func TestUnmountWhileBusy(t *testing.T) {
	promise(t, semanticsPage, "`umount` of a mount in use fails with EBUSY and changes nothing; `umount -l` takes the name away, and "+
		"those who have files open keep them until they close.")
	from := makeModel(t, "3M", 1)
	source := tempDir(t)
	m := newMount(t, source)
	mapped, letGo := inUse(t, m, from)
	if out, code := m.run("umount", m.dir); code == 0 || !strings.Contains(out, "busy") {
		t.Errorf("umount: %d %s", code, out)
	}
	m.holds("a.gguf", read(t, from))
	f, err := os.Open(m.out("a.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	must(t, "umount", "-l", m.dir)
	if ents, err := os.ReadDir(m.dir); err != nil || len(ents) > 0 {
		t.Errorf("after umount -l: %v %v", ents, err)
	}
	b := make([]byte, len(mapped))
	if _, err := f.ReadAt(b, 0); err != nil || !bytes.Equal(b, mapped) {
		t.Errorf("reading on: %v", err)
	}
	if err := unix.Kill(m.pid, 0); err != nil {
		t.Errorf("the daemon went although files are open: %v", err)
	}
	f.Close()
	letGo()
	m.wait()
}

// TestConnectionAbort is what an administrator does to a mount that hangs.
func TestConnectionAbort(t *testing.T) {
	promise(t, semanticsPage, "After an abort of the connection programs get ENOTCONN, the daemon writes everything back and ends.")
	from := makeModel(t, "1M", 1)
	source := tempDir(t)
	m := newMount(t, source)
	m.put(from, "a.gguf")
	abort(t, m.dir)
	if _, err := os.ReadFile(m.out("a.gguf")); !gone(err, m.dir) {
		t.Errorf("after the abort: %v", err)
	}
	m.wait()
	same(t, filepath.Join(source, "a.gguf"), read(t, from))
	must(t, "umount", m.dir)
}

// TestSecondStart: one SOURCE, one mountpoint, one daemon.
func TestSecondStart(t *testing.T) {
	promise(t, semanticsPage, "A second daemon on the same SOURCE or on the same mountpoint is refused, and the first goes on.")
	from := makeModel(t, "300K", 1)
	source := tempDir(t)
	m := newMount(t, source)
	m.put(from, "a.gguf")
	other := tempDir(t)
	for _, args := range [][]string{{source, other}, {source, m.dir}, {"none", m.dir}} {
		if out, code := m.run(binary, args[0], args[1], "-o", "segdir="+m.segs); code != exitMount {
			t.Errorf("%v: exit code %d: %s", args, code, out)
		}
	}
	m.holds("a.gguf", read(t, from))
	m.settled()
	m.check("--full")
}

// TestBindMount: another way to the same tree.
func TestBindMount(t *testing.T) {
	promise(t, semanticsPage, "A bind mount shows the same files, loads models as well, and keeps the daemon until it is gone.")
	from := makeModel(t, "300K", 1)
	m := newMount(t, tempDir(t))
	dir := tempDir(t)
	must(t, "mount", "--bind", m.out(""), dir)
	defer unix.Unmount(dir, unix.MNT_DETACH)
	must(t, "cp", from, dir+"/a.gguf")
	m.holds("a.gguf", read(t, from))
	must(t, "umount", m.dir)
	same(t, dir+"/a.gguf", read(t, from))
	must(t, "umount", dir)
	m.wait()
}

// TestStoppedDaemon: requests wait and go on, what bypasses the daemon does not wait.
func TestStoppedDaemon(t *testing.T) {
	promise(t, semanticsPage, "While the daemon is stopped (SIGSTOP) requests wait, and go on with SIGCONT; mapped and open models can be read meanwhile.")
	from := makeModel(t, "3M", 1)
	m := newMount(t, "none")
	m.put(from, "a.gguf")
	reader := exec.Command("python3", "-c", readsOn, m.out("a.gguf"), from)
	in, err := reader.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := reader.StdoutPipe()
	if err == nil {
		err = reader.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(out)
	said.Scan()
	if err := unix.Kill(m.pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() { written <- exec.Command("cp", from, m.out("b.gguf")).Run() }()
	if _, err := in.Write([]byte("\n")); err != nil || !said.Scan() || said.Text() != "same" {
		t.Errorf("reading while the daemon is stopped: %q %v", said.Text(), err)
	}
	select {
	case err := <-written:
		t.Errorf("a file was written without a daemon: %v", err)
	default:
	}
	if err := unix.Kill(m.pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-written, reader.Wait()); err != nil {
		t.Error(err)
	}
	m.holds("b.gguf", read(t, from))
	m.check()
}

// readsOn opens and maps a file, and reads it when told to. It is a program of its
// own because closing a file, which a fork does too, needs the daemon.
const readsOn = `
import mmap, os, sys
f = open(sys.argv[1], "rb")
m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
print("ready", flush=True)
sys.stdin.readline()
want = open(sys.argv[2], "rb").read()
print("same" if m[:] == want and os.pread(f.fileno(), len(want), 0) == want else "other bytes", flush=True)
`

// TestRestartWithReaders: the next daemon serves the same bytes, and readers of
// the first keep theirs.
func TestRestartWithReaders(t *testing.T) {
	promise(t, semanticsPage, "Readers that have a model mapped keep its bytes through an end and a new start of the daemon.")
	from := makeModel(t, "3M", 1)
	source := tempDir(t)
	m := newMount(t, source)
	for _, end := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		m.put(from, "a.gguf")
		mapped, err := mapFile(m.boot("models/a.gguf/model.gguf"))
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(m.pid, end); err != nil {
			t.Fatal(err)
		}
		m.wait()
		m.start(source)
		same(t, m.out("a.gguf"), mapped)
		if err := os.WriteFile(m.out("a.gguf"), read(t, makeModel(t, "3M", 2)), 0o644); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(mapped, read(t, from)) {
			t.Errorf("after %v the mapped bytes have changed", end)
		}
		_ = unix.Munmap(mapped)
	}
	m.settled()
	m.check("--full")
}
