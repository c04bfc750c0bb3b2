package shm

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// open makes a store for a test and removes it afterwards.
func open(t *testing.T, c Config) *Store {
	t.Helper()
	if c.Base == "" {
		c.Base = t.TempDir()
	}
	if c.ID == "" {
		c.ID = "test"
	}
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(s.Root); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left behind", s.Root)
		}
	})
	return s
}

func create(t *testing.T, dir *Node, name, content string) *Node {
	t.Helper()
	n, err := dir.Create(name, 0o644, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	if _, err := n.WriteAt([]byte(content), 0); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestRootShowsFilesButCannotBeWritten(t *testing.T) {
	s := open(t, Config{})
	create(t, s.Live, "a", "hello")
	p := filepath.Join(s.Root, "live", "a")
	if b, err := os.ReadFile(p); err != nil || string(b) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
	if !s.Private {
		t.Log("no privilege: the directory is writable by its owner")
		return
	}
	if err := os.WriteFile(p, nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing around the daemon: %v, want EROFS", err)
	}
}

func TestPathFollowsRenames(t *testing.T) {
	s := open(t, Config{})
	d, err := s.Live.Mkdir("d", 0o755, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	n := create(t, d, "x", "1")
	check := func(want string, ok bool) {
		t.Helper()
		if p, have := n.Path(); p != want || have != ok {
			t.Errorf("path %q %v, want %q %v", p, have, want, ok)
		}
	}
	check("d/x", true)
	if err := s.Live.Rename("d", s.Live, "e", 0); err != nil {
		t.Fatal(err)
	}
	check("e/x", true)
	if err := d.Rename("x", s.Live, "y (deleted)", 0); err != nil {
		t.Fatal(err)
	}
	check("y (deleted)", true)
	if err := s.Live.Link(n, "z"); err != nil {
		t.Fatal(err)
	}
	if err := s.Live.Unlink("y (deleted)"); err != nil {
		t.Fatal(err)
	}
	check("z", true) // the name it was opened by is gone
	if err := s.Live.Rename("z", s.Live, "y (deleted)", 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Live.Unlink("y (deleted)"); err != nil {
		t.Fatal(err)
	}
	check("", false)
	if p, ok := s.Live.Path(); p != "." || !ok {
		t.Errorf("live itself: %q %v", p, ok)
	}
}

func TestTakeoverAfterACrash(t *testing.T) {
	c := Config{Base: t.TempDir(), ID: "crash"}
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	if s.Attached {
		t.Error("a new store says it was attached")
	}
	create(t, s.Live, "a", "kept")
	if _, err := Open(c); !errors.Is(err, ErrInUse) {
		t.Errorf("second open: %v, want ErrInUse", err)
	}
	s.Abandon()
	s2 := open(t, c)
	if !s2.Attached {
		t.Error("the tree was not taken over")
	}
	n, err := s2.Live.Lookup("a")
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	buf := make([]byte, 4)
	if _, err := n.ReadAt(buf, 0); err != nil || string(buf) != "kept" {
		t.Errorf("%q, %v", buf, err)
	}
	if _, err := n.WriteAt([]byte("more"), 4); err != nil {
		t.Errorf("writing after the takeover: %v", err)
	}
}

func TestLimit(t *testing.T) {
	s := open(t, Config{Limit: 8 << 20})
	n := create(t, s.Live, "big", "")
	_, err := n.WriteAt(make([]byte, 9<<20), 0)
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("write past the limit: %v, want ENOSPC", err)
	}
	if err := n.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err := n.WriteAt(make([]byte, 4<<20), 0); err != nil {
		t.Errorf("space did not come back: %v", err)
	}
	if used, limit := s.Usage(); used < 4<<20 || used > limit || limit != 8<<20 {
		t.Errorf("usage %d of %d", used, limit)
	}
}

func TestPlantedLinkIsRefused(t *testing.T) {
	base := t.TempDir()
	victim := t.TempDir()
	if err := os.Symlink(victim, filepath.Join(base, "x")); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(Config{Base: base, ID: "x"}); err == nil {
		s.Close()
		t.Fatal("a planted symlink was followed")
	} else if !strings.Contains(err.Error(), "not a directory") {
		t.Error(err)
	}
}

func TestDirents(t *testing.T) {
	s := open(t, Config{})
	want := map[string]bool{}
	for i := range 300 {
		name := strings.Repeat("n", i%200+1) + string(rune('a'+i/200))
		want[name] = true
		n, err := s.Live.Create(name, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		n.Close()
	}
	got, err := s.Live.Names()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range got {
		if !want[e.Name] || e.Type != unix.S_IFREG {
			t.Errorf("unexpected %+v", e)
		}
		delete(want, e.Name)
	}
	if len(want) > 0 {
		t.Errorf("%d names missing", len(want))
	}
}

func TestHugePagesWhileHurrying(t *testing.T) {
	s := open(t, Config{Limit: 64 << 20})
	s.Hurry(1)
	n := create(t, s.Live, "m", "")
	if _, err := n.WriteAt(bytes.Repeat([]byte{1}, 5000), 0); err != nil {
		t.Fatal(err)
	}
	s.Hurry(-1)
	n.Trim()
	if st, err := n.Stat(); err != nil || st.Blocks*512 != 8192 || st.Size != 5000 {
		t.Errorf("after trim: %d blocks, size %d, %v", st.Blocks, st.Size, err)
	}
}

func TestSmallFilesWhileHurrying(t *testing.T) {
	s := open(t, Config{Limit: 64 << 20})
	from := create(t, s.Live, "from", "small")
	s.Hurry(1)
	defer s.Hurry(-1)
	page, err := s.Control.Page("p")
	if err != nil {
		t.Fatal(err)
	}
	defer page.Close()
	to := create(t, s.Live, "to", "")
	if _, err := to.Copy(from, 0, 0, 5); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*Node{page.Node, to} {
		if st, err := n.Stat(); err != nil || st.Blocks*512 != 4096 {
			t.Errorf("a file of %d bytes takes %d, %v", st.Size, st.Blocks*512, err)
		}
	}
}

func TestGrow(t *testing.T) {
	s := open(t, Config{Limit: 64 << 20, Names: 100, Most: 300})
	if !s.Private {
		t.Log("no privilege: the tmpfs is another's")
		return
	}
	fill := func(from int) (n int) {
		for n = from; ; n++ {
			f, err := s.Live.Create(strconv.Itoa(n), 0o600, nil)
			if errors.Is(err, unix.ENOSPC) {
				return n
			}
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
	}
	first := fill(0)
	if !s.Crowded() {
		t.Error("a full store is not crowded")
	}
	if err := s.Grow(); err != nil {
		t.Fatal(err)
	}
	if second := fill(first); second != first+100 {
		t.Errorf("%d files fit, and %d after growing", first, second)
	}
	if err := s.Grow(); err != nil {
		t.Fatal(err)
	}
	if err := s.Grow(); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "300 names") {
		t.Errorf("growing beyond the bound: %v", err)
	}
}

// TestPageWithoutRoom: a page that finds no room leaves no file.
func TestPageWithoutRoom(t *testing.T) {
	s := open(t, Config{Limit: 1 << 20})
	n := create(t, s.Live, "filler", "")
	for size := int64(1 << 20); size >= 4096; size /= 2 {
		for off := n.Size(); n.Allocate(0, off, size) == nil; off = n.Size() {
		}
	}
	if p, err := s.Control.Page("page"); !errors.Is(err, unix.ENOSPC) {
		if err == nil {
			p.Close()
		}
		t.Fatalf("%v, want ENOSPC", err)
	}
	if ents, err := s.Control.Names(); err != nil || len(ents) > 0 {
		t.Errorf("left behind: %v %v", ents, err)
	}
}

func FuzzDirents(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x18\x00\x08a\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) { parseDirents(b) })
}

// TestOneDescriptor: reading and writing a file takes no second descriptor.
func TestOneDescriptor(t *testing.T) {
	s := open(t, Config{})
	n, err := s.Live.Mknod("a", unix.S_IFREG|0o600, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	fds := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before := fds()
	if _, err := n.WriteAt([]byte("hello"), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Live.Rename("a", s.Live, "b", 0); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := n.ReadAt(buf, 0); err != nil || string(buf) != "hello" {
		t.Errorf("read %q: %v", buf, err)
	}
	if p, ok := n.Path(); p != "b" || !ok {
		t.Errorf("it is called %q", p)
	}
	if after := fds(); after != before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
}
