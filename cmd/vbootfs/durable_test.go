package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFsyncIsOnDisk(t *testing.T) {
	quote(t, "When `fsync()` of a file has returned, SOURCE has its bytes under its name; `fsync()` of a directory does that for its names.")
	source := tempDir(t)
	m := newMount(t, source)
	must(t, "mkdir", m.out("d"))
	for _, name := range []string{"d/a.gguf", "d/note"} {
		f, err := os.Create(m.out(name))
		if err != nil {
			t.Fatal(err)
		}
		text := []byte("no model yet")
		if _, err := f.Write(text); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Error(err)
		}
		same(t, filepath.Join(source, name), text)
		_ = f.Close() // the model is refused
	}
	must(t, "mkdir", m.out("d/e"))
	must(t, "ln", "-s", "x", m.out("d/link"))
	must(t, "mv", m.out("d/note"), m.out("d/other"))
	must(t, "rm", m.out("d/a.gguf"))
	must(t, "sync", m.out("d"))
	if have := must(t, "ls", filepath.Join(source, "d")); have != "e\nlink\nother\n" {
		t.Errorf("SOURCE has %q", have)
	}
}

func TestFailedWriteBack(t *testing.T) {
	quote(t, "`pending_files` and `pending_bytes` of `status` count what SOURCE does not have.",
		"What cannot be written to SOURCE stays in memory, is pending, and is tried again every 5 seconds.",
		"The failure is an event `writeback_failed`, and the error of the next `fsync()` or `close()` of a file that is open for writing, once.")
	a := makeModel(t, "2M", 1)
	source := small(t, "size=1m")
	m := newMount(t, source)
	m.put(a, "a.gguf")
	failed := func() bool {
		return bytes.Contains(read(t, m.boot("events.log")), []byte(`"writeback_failed"`)) && m.number("pending_files") == 1
	}
	until(t, "the event", failed)
	if have, want := m.number("pending_bytes"), len(read(t, a)); have != want {
		t.Errorf("%d bytes are pending, want %d", have, want)
	}
	f, err := os.OpenFile(m.out("a.gguf"), os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("fsync: %v", err)
	}
	same(t, m.out("a.gguf"), read(t, a))
	remount(t, source, 0, "size=16m")
	until(t, "another try", func() bool { return m.number("pending_files") == 0 })
	same(t, source+"/a.gguf", read(t, a))
	_ = f.Sync() // tells of a try since the last fsync, if there was one
	if err := f.Sync(); err != nil {
		t.Errorf("fsync after all went well: %v", err)
	}
}

// TestCloseTellsOfAnEarlierFailure closes a file whose last write-back failed.
func TestCloseTellsOfAnEarlierFailure(t *testing.T) {
	source := small(t, "size=1m")
	m := newMount(t, source)
	text := bytes.Repeat([]byte("text"), 1<<19)
	write(t, m.out("f"), text)
	until(t, "the event", func() bool {
		return bytes.Contains(read(t, m.boot("events.log")), []byte(`"writeback_failed"`))
	})
	again := func() error {
		f, err := os.OpenFile(m.out("f"), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte("more")); err != nil {
			t.Error(err)
		}
		return f.Close()
	}
	remount(t, source, 0, "size=16m")
	write(t, m.boot("ctl"), []byte("sync")) // it is saved, and nobody was told that it was not
	if err := again(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("close after a failure: %v", err)
	}
	if err := again(); err != nil {
		t.Errorf("close after that: %v", err)
	}
	write(t, m.boot("ctl"), []byte("sync"))
	same(t, source+"/f", append(text, "moremore"...))
}
