package vectorboot

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"vbootfs/shm"
)

// pair is a store and the SOURCE behind it.
type pair struct {
	*shm.Store
	src *Source
	dir string
}

func newPair(t *testing.T, dir string) *pair {
	t.Helper()
	st, err := shm.Open(shm.Config{Base: t.TempDir(), ID: "t", Limit: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	src, err := OpenSource(dir, st, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := src.Start(st.Attached); err != nil {
		t.Fatal(err)
	}
	return &pair{st, src, dir}
}

// settled waits for the write-back and lists SOURCE as lines "mode path content".
func (p *pair) settled(t *testing.T) string {
	t.Helper()
	if err := p.src.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	return listing(t, p.dir)
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, p)
		if err != nil || rel == "." {
			return err
		}
		if rel == workDir {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := info.Mode().String() + " " + rel
		switch info.Mode().Type() {
		case 0:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += " " + string(b)
		case fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func (p *pair) put(t *testing.T, dir *shm.Node, name, content string) {
	t.Helper()
	n, err := dir.Create(name, 0o640, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := n.WriteAt([]byte(content), 0); err != nil {
		t.Fatal(err)
	}
	at, _ := dir.Path()
	p.src.Mark(filepath.Join(at, name))
}

func TestWriteBack(t *testing.T) {
	p := newPair(t, t.TempDir())
	p.put(t, p.Live, "f", "one")
	d, err := p.Live.Mkdir("d", 0o750, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p.put(t, d, "g", "two") // its directory is made with it
	l, err := p.Live.Symlink("../x", "l", nil)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	p.src.Mark("l")
	if have, want := p.settled(t), "-rw-r----- d/g two\n-rw-r----- f one\nLrwxrwxrwx l -> ../x\ndrwxr-x--- d"; have != want {
		t.Errorf("SOURCE is\n%s\nwant\n%s", have, want)
	}

	if err := p.Live.Rename("d", p.Live, "e", 0); err != nil {
		t.Fatal(err)
	}
	p.src.Renamed("d", "e")
	p.put(t, p.Live, "new", "three")
	if err := p.Live.Rename("new", p.Live, "f", 0); err != nil {
		t.Fatal(err)
	}
	p.src.Renamed("new", "f")
	if err := p.Live.Unlink("l"); err != nil {
		t.Fatal(err)
	}
	p.src.Mark("l")
	if have, want := p.settled(t), "-rw-r----- e/g two\n-rw-r----- f three\ndrwxr-x--- e"; have != want {
		t.Errorf("SOURCE is\n%s\nwant\n%s", have, want)
	}
	if err := p.src.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(p.dir, workDir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("working directory left: %v %v", left, err)
	}
}

func TestHardLinksStayLinks(t *testing.T) {
	dir := t.TempDir()
	p := newPair(t, dir)
	p.put(t, p.Live, "a", "1")
	p.settled(t)
	a, err := p.Live.Lookup("a")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := p.Live.Link(a, "b"); err != nil {
		t.Fatal(err)
	}
	p.src.Mark("b")
	p.settled(t)
	if _, err := a.WriteAt([]byte("22"), 0); err != nil {
		t.Fatal(err)
	}
	p.src.Mark("a")
	if have, want := p.settled(t), "-rw-r----- a 22\n-rw-r----- b 22"; have != want {
		t.Errorf("SOURCE is\n%s\nwant\n%s", have, want)
	}
	one, err1 := os.Stat(filepath.Join(dir, "a"))
	two, err2 := os.Stat(filepath.Join(dir, "b"))
	if err1 != nil || err2 != nil || !os.SameFile(one, two) {
		t.Error("the two names are two files in SOURCE")
	}
	if err := p.src.Close(); err != nil {
		t.Fatal(err)
	}
	again := newPair(t, dir)
	n, err := again.Live.Lookup("b")
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if st, err := n.Stat(); err != nil || st.Nlink != 2 {
		t.Errorf("after a new start b has %d names, %v", st.Nlink, err)
	}
	if err := again.src.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestColdFilesAreFilledInPlace(t *testing.T) {
	dir := t.TempDir()
	content := strings.Repeat("cold", 1000)
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	stamp := time.Unix(1e9, 5e8)
	if err := os.Chtimes(filepath.Join(dir, "f"), stamp, stamp); err != nil {
		t.Fatal(err)
	}
	p := newPair(t, dir)
	n, err := p.Live.Lookup("f")
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if used, _ := p.Usage(); !p.src.IsCold(n) || n.Size() != int64(len(content)) || used > notesRoom+4096 {
		t.Fatalf("cold %v, size %d, %d bytes used", p.src.IsCold(n), n.Size(), used)
	}
	if err := p.src.Fill(context.Background(), "f", n); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, len(content))
	if _, err := n.ReadAt(buf, 0); err != nil || string(buf) != content {
		t.Errorf("filled with other bytes: %v", err)
	}
	st, err := n.Stat()
	if err != nil || p.src.IsCold(n) || st.Mtim.Nano() != stamp.UnixNano() {
		t.Errorf("cold %v, mtime %v, %v", p.src.IsCold(n), st.Mtim, err)
	}
	if files, bytes := p.src.Pending(); files != 0 || bytes != 0 {
		t.Errorf("reading made %d files dirty", files)
	}
	if err := p.src.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWriteBackErrors(t *testing.T) {
	dir := t.TempDir()
	p := idle(t, dir, t.TempDir()) // the error would come once more, of the write-back behind
	t.Cleanup(func() {
		if err := p.Store.Close(); err != nil {
			t.Error(err)
		}
	})
	var failed []Event
	p.src.report = func(e Event) { failed = append(failed, e) }
	block := filepath.Join(dir, workDir)
	if err := os.Remove(block); err != nil { // nothing can be written without it
		t.Fatal(err)
	}
	p.put(t, p.Live, "f", "x")
	if err := p.src.Sync("f"); err == nil {
		t.Fatal("fsync succeeded without a place to write")
	}
	if n, _ := p.src.Pending(); n != 1 {
		t.Errorf("%d files pending after a failure, want 1: it has to be tried again", n)
	}
	if err := os.Mkdir(block, 0o700); err != nil {
		t.Fatal(err)
	}
	_ = p.src.Sync("f") // tells of a try since the last fsync, if there was one
	if err := p.src.Sync("f"); err != nil {
		t.Errorf("fsync after the fault went away: %v", err)
	}
	if have := listing(t, dir); have != "-rw-r----- f x" {
		t.Errorf("SOURCE is %s", have)
	}
	if err := p.src.Close(); err != nil {
		t.Error(err)
	}
	if len(failed) == 0 || failed[0].Event != "writeback_failed" {
		t.Errorf("events: %v", failed)
	}
}
