package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// faults of the disk that holds SOURCE. Each begins with one file that is safe.
var sourceFaults = []struct {
	name       string
	begin, end func(d *testDisk)
	fsync      unix.Errno
}{
	{
		"full",
		func(d *testDisk) {
			if err := os.WriteFile(d.mnt+"/filler", make([]byte, 64<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
				d.t.Fatalf("the disk is not full: %v", err)
			}
		},
		func(d *testDisk) { must(d.t, "rm", d.mnt+"/filler") }, unix.ENOSPC,
	}, {
		"read-only",
		func(d *testDisk) { must(d.t, "mount", "-o", "remount,ro", d.mnt) },
		func(d *testDisk) { must(d.t, "mount", "-o", "remount,rw", d.mnt) }, unix.EROFS,
	},
}

// TestSourceFaults writes while SOURCE cannot take it.
func TestSourceFaults(t *testing.T) {
	promise(t, semanticsPage, "While SOURCE is full, `fsync()` fails with ENOSPC and what was written stays in the mount; it gets to SOURCE when there is room.")
	promise(t, semanticsPage, "While SOURCE is read-only, `fsync()` fails with EROFS and what was written stays in the mount; it gets to SOURCE when it can.")
	for _, f := range sourceFaults {
		t.Run(f.name, func(t *testing.T) {
			d := newDisk(t, 32)
			m := newMount(t, d.mnt)
			a, b := read(t, makeModel(t, "300K", 1)), read(t, makeModel(t, "300K", 2))
			m.synced("a.gguf", a)
			f.begin(d)
			err := writeSynced(m.out("a.gguf"), b)
			if no := unix.Errno(0); !errors.As(err, &no) || no != f.fsync {
				t.Errorf("fsync: %v, want %v", err, f.fsync)
			}
			m.fails("new.gguf", b)
			m.holds("a.gguf", b)
			same(t, d.mnt+"/a.gguf", a) // whole, though old
			m.reported("writeback_failed")
			f.end(d)
			m.settled()
			m.check("--full")
			same(t, d.mnt+"/a.gguf", b)
			same(t, d.mnt+"/new.gguf", b)
			m.stop()
		})
	}
}

// synced writes a file that has to become durable.
func (m *mount) synced(p string, b []byte) {
	m.t.Helper()
	if err := writeSynced(m.out(p), b); err != nil {
		m.t.Fatal(err)
	}
}

// fails writes a file that cannot become durable now.
func (m *mount) fails(p string, b []byte) {
	m.t.Helper()
	if err := writeSynced(m.out(p), b); err == nil {
		m.t.Errorf("fsync of %s says that it is safe", p)
	}
}

// reported waits for an event.
func (m *mount) reported(event string) {
	m.t.Helper()
	m.until("there is the event "+event, func() bool {
		return bytes.Contains(read(m.t, m.boot("events.log")), []byte(`"event":"`+event+`"`))
	})
}

// TestSourceWithBadBlocks lets the disk fail. ext4 gives up on a disk that fails
// to take its journal, so SOURCE is mounted anew afterwards, and the daemon with it.
func TestSourceWithBadBlocks(t *testing.T) {
	promise(t, semanticsPage, "When the disk of SOURCE fails, `fsync()` says so and the mount goes on; a daemon that cannot write "+
		"everything back when it ends leaves the segments, and the next one does.")
	a, b := read(t, makeModel(t, "300K", 1)), read(t, makeModel(t, "300K", 2))
	for _, kind := range []string{"writes", "flushes"} {
		t.Run(kind, func(t *testing.T) {
			d := newDisk(t, 32)
			m := newMount(t, d.mnt)
			m.synced("a.gguf", a)
			d.ctl("fail " + kind)
			m.fails("a.gguf", b)
			m.fails("new.gguf", b)
			m.holds("a.gguf", b)
			m.holds("new.gguf", b)
			m.reported("writeback_failed")
			m.stop()
			if !strings.Contains(string(read(t, m.logFile())), "not everything could be put away") {
				t.Error("the daemon did not say that something is missing")
			}
			must(t, "rm", m.logFile())
			d.detach()
			out, code := output(t, exec.Command("e2fsck", "-fy", d.dir+"/image"))
			if code > 1 {
				t.Fatalf("e2fsck: %s", out)
			}
			d.attach(d.dir + "/image")
			m.start(d.mnt)
			m.settled()
			m.check("--full")
			m.holds("a.gguf", b)
			same(t, d.mnt+"/new.gguf", b)
			m.stop()
		})
	}
}

// TestSourceThatCannotBeRead: cold models fail, everything else works.
func TestSourceThatCannotBeRead(t *testing.T) {
	promise(t, semanticsPage, "A cold model whose bytes SOURCE cannot give is an EIO for its readers; it stays cold, others are "+
		"untouched, and it can be read when SOURCE can.")
	d := newDisk(t, 32)
	a, b := read(t, makeModel(t, "3M", 1)), read(t, makeModel(t, "300K", 2))
	m := newMount(t, d.mnt)
	m.synced("a.gguf", a)
	m.stop()
	d.detach() // what the page cache has goes
	d.attach(d.dir + "/image")
	m.start(d.mnt)
	m.synced("b.gguf", b)
	m.expect("a.gguf", "state", "cold")
	d.ctl("fail reads")
	if _, err := os.ReadFile(m.out("a.gguf")); !errors.Is(err, unix.EIO) {
		t.Errorf("reading what cannot be read: %v", err)
	}
	m.expect("a.gguf", "state", "cold")
	m.holds("b.gguf", b)
	d.heal()
	same(t, m.out("a.gguf"), a)
	m.holds("a.gguf", a)
	m.settled()
	m.check("--full")
	m.stop()
}

// TestSourceThatStalls: only who needs SOURCE waits.
func TestSourceThatStalls(t *testing.T) {
	promise(t, semanticsPage, "While SOURCE does not answer, who waits for it waits, and nobody else does.")
	d := newDisk(t, 32)
	a, b := read(t, makeModel(t, "300K", 1)), read(t, makeModel(t, "300K", 2))
	m := newMount(t, d.mnt)
	m.synced("a.gguf", a)
	d.ctl("stall flushes")
	waits := make(chan error, 1)
	go func() { waits <- writeSynced(m.out("c.gguf"), b) }()
	write(t, m.out("b.gguf"), b) // a load, a replacement and reads go on
	write(t, m.out("a.gguf"), b)
	m.holds("a.gguf", b)
	m.expect("b.gguf", "state", "loaded")
	must(t, "mv", m.out("b.gguf"), m.out("d.gguf"))
	must(t, "rm", m.out("d.gguf"))
	select {
	case err := <-waits:
		t.Errorf("fsync returned while SOURCE was stalled: %v", err)
	default:
	}
	d.heal()
	if err := <-waits; err != nil {
		t.Error(err)
	}
	m.settled()
	m.check("--full")
	m.stop()
}
