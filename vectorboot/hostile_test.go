package vectorboot

import (
	"context"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vbootfs/shm"
)

// at makes a SOURCE of files, each with its name as content, and adopts it.
func at(t *testing.T, names ...string) *pair {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return newPair(t, dir)
}

// idle is a pair whose write-back does not run: what is marked stays pending.
func idle(t *testing.T, dir, base string) *pair {
	t.Helper()
	st, err := shm.Open(shm.Config{Base: base, ID: "t", Limit: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	src, err := OpenSource(dir, st, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := src.begin(st.Attached); err != nil {
		t.Fatal(err)
	}
	return &pair{st, src, dir}
}

// kill lets go of everything as the end of the process would.
func (p *pair) kill() {
	p.src.notes.close()
	p.src.root.Close()
	p.Abandon()
}

// restart is a new start after kill, which is closed at the end of the test.
func restart(t *testing.T, dir, base string) *pair {
	t.Helper()
	p := idle(t, dir, base)
	p.src.started = true
	go p.src.run()
	t.Cleanup(func() {
		if err := p.src.Close(); err != nil {
			t.Error(err)
		}
		if err := p.Store.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *pair) node(t *testing.T, name string) *shm.Node {
	t.Helper()
	n, err := p.Live.Walk(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(n.Close)
	return n
}

// bytesOf reads a live file, which may be cold.
func (p *pair) bytesOf(t *testing.T, name string) string {
	t.Helper()
	n := p.node(t, name)
	if p.src.IsCold(n) {
		if err := p.src.Fill(context.Background(), name, n); err != nil {
			t.Errorf("%s: %v", name, err)
			return ""
		}
	}
	b := make([]byte, n.Size())
	if _, err := n.ReadAt(b, 0); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	return string(b)
}

func (p *pair) staged(t *testing.T, content string) (*shm.Node, string) {
	t.Helper()
	name := p.StageName()
	n, err := p.Stage.Create(name, 0o644, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	if _, err := n.WriteAt([]byte(content), 0); err != nil {
		t.Fatal(err)
	}
	return n, name
}

func wantSource(t *testing.T, p *pair, want string) {
	t.Helper()
	var lines []string
	for _, line := range strings.Split(p.settled(t), "\n") {
		if !strings.HasPrefix(line, "d") {
			lines = append(lines, line[strings.Index(line, " ")+1:])
		}
	}
	sort.Strings(lines)
	if have := strings.Join(lines, ", "); have != want {
		t.Errorf("SOURCE has %q, want %q", have, want)
	}
}

// at0 is the SOURCE of at(t, "a", "d/x").
func at0(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "d/x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func (p *pair) files(t *testing.T) (names []string) {
	t.Helper()
	err := Walk(p.Live, ".", func(q string, n *shm.Node) {
		if n.Type == unix.S_IFREG {
			names = append(names, q)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func (p *pair) unlink(t *testing.T, name string) {
	t.Helper()
	if err := p.Live.Unlink(name); err != nil {
		t.Fatal(err)
	}
}

// rename does what the mount does.
func (p *pair) rename(t *testing.T, from, to string, flags uint32) {
	t.Helper()
	a, b := p.node(t, filepath.Dir(from)), p.node(t, filepath.Dir(to))
	if err := a.Rename(filepath.Base(from), b, filepath.Base(to), flags); err != nil {
		t.Fatal(err)
	}
	if flags == unix.RENAME_EXCHANGE {
		p.src.Exchanged(from, to)
	} else {
		p.src.Renamed(from, to)
	}
}

// What docs/SECURITY.md promises; cmd/vbootfs finds the sentences here.
const (
	onlyOurFiles = "A file of SOURCE that was replaced by a link, a FIFO, a device or another's file is neither read nor changed."
	onlyOurDirs  = "A directory of SOURCE that was replaced by a link is not entered."
)

// TestNothingIsReadThroughLinks swaps files of SOURCE, as its user may at any time.
func TestNothingIsReadThroughLinks(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("d/x"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]func(p string) error{
		"a symbolic link": func(p string) error { return os.Symlink(secret, p) },
		"a hard link":     func(p string) error { return os.Link(secret, p) },
		"a FIFO":          func(p string) error { return unix.Mkfifo(p, 0o644) },
		"a device":        func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) },
		"a directory":     func(p string) error { return os.Mkdir(p, 0o755) },
	}
	for what, swap := range tests {
		t.Run(onlyOurFiles+" "+what, func(t *testing.T) {
			p := at(t, "d/x")
			n := p.node(t, "d/x")
			if err := os.Remove(filepath.Join(p.dir, "d/x")); err != nil {
				t.Fatal(err)
			}
			if err := swap(filepath.Join(p.dir, "d/x")); err != nil {
				t.Fatal(err)
			}
			if err := p.src.Fill(context.Background(), "d/x", n); err == nil || !p.src.IsCold(n) {
				t.Error("it was read")
			}
			closeSource(t, p)
		})
	}
	t.Run(onlyOurDirs, func(t *testing.T) {
		p := at(t, "d/x", "e/x")
		if err := os.Rename(filepath.Join(p.dir, "d"), filepath.Join(p.dir, "f")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("f", filepath.Join(p.dir, "d")); err != nil {
			t.Fatal(err)
		}
		if err := p.src.Fill(context.Background(), "d/x", p.node(t, "d/x")); err == nil {
			t.Error("it was read")
		}
		closeSource(t, p)
	})
}

// TestNothingIsChangedThroughLinks gives a live file away while its name in SOURCE
// is a link to another's.
func TestNothingIsChangedThroughLinks(t *testing.T) {
	p := at(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("f"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, link := range map[string]func(old, p string) error{"f": os.Link, "g": os.Symlink} {
		p.put(t, p.Live, name, "f")
		p.settled(t)
		n := p.node(t, name)
		if err := os.Remove(filepath.Join(p.dir, name)); err != nil {
			t.Fatal(err)
		}
		if err := link(secret, filepath.Join(p.dir, name)); err != nil {
			t.Fatal(err)
		}
		if err := n.Chmod(0o666); err != nil {
			t.Fatal(err)
		}
		p.src.Mark(name)
	}
	wantSource(t, p, "f f, g f")
	info, err := os.Stat(secret)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("the secret has mode %v, %v", info.Mode(), err)
	}
	closeSource(t, p)
}

// TestWriteBackLeavesNoTrace compares times of a live file before and after.
func TestWriteBackLeavesNoTrace(t *testing.T) {
	p := at(t)
	n, err := p.Live.Create("f", 0o644, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := n.WriteAt([]byte("hello"), 0); err != nil {
		t.Fatal(err)
	}
	before, err := n.Stat()
	if err != nil {
		t.Fatal(err)
	}
	p.src.Dirty(n)
	p.src.Mark("f")
	wantSource(t, p, "f hello")
	after, err := n.Stat()
	if err != nil || before.Ctim != after.Ctim || before.Atim != after.Atim || before.Mtim != after.Mtim {
		t.Errorf("times were %v %v %v, are %v %v %v, %v", before.Atim, before.Mtim, before.Ctim, after.Atim, after.Mtim, after.Ctim, err)
	}
	closeSource(t, p)
}

// TestStoresThroughAMappingAfterFsync changes a file in a way that its times do not tell.
func TestStoresThroughAMappingAfterFsync(t *testing.T) {
	p := at(t)
	p.put(t, p.Live, "f", "one")
	n := p.node(t, "f")
	p.settled(t)
	p.src.Dirty(n)
	p.src.Busy = func(ino uint64) bool { return ino == n.Ino }
	if err := p.src.Sync("f"); err != nil {
		t.Fatal(err)
	}
	st, err := n.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.WriteAt([]byte("two"), 0); err != nil {
		t.Fatal(err)
	}
	if err := n.Utimes([2]unix.Timespec{st.Atim, st.Mtim}); err != nil {
		t.Fatal(err)
	}
	p.src.Busy = func(uint64) bool { return false }
	p.src.Mark("f")
	wantSource(t, p, "f two")
	closeSource(t, p)
}

// TestManyNames adopts more names than the store was made for.
func TestManyNames(t *testing.T) {
	dir := t.TempDir()
	for i := range 300 {
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		most uint64
		want string
	}{{0, ""}, {200, "SOURCE has more names than fit: shared memory has room for 200 names"}} {
		st, err := shm.Open(shm.Config{Base: t.TempDir(), ID: "t", Limit: 64 << 20, Names: 100, Most: test.most})
		if err != nil {
			t.Fatal(err)
		}
		src, err := OpenSource(dir, st, false)
		if err != nil {
			t.Fatal(err)
		}
		p := &pair{st, src, dir}
		switch err = src.Start(false); {
		case test.want == "" && (err != nil || len(p.files(t)) != 300):
			t.Errorf("%d names, %v", len(p.files(t)), err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("the error is %v, want %q", err, test.want)
		}
		closeSource(t, p)
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestUserAttributesComeBack(t *testing.T) {
	dir := at0(t)
	if err := unix.Setxattr(filepath.Join(dir, "a"), "user.note", []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	p := newPair(t, dir)
	n := p.node(t, "a")
	if err := n.Utimes([2]unix.Timespec{{Sec: 1}, {Sec: 1}}); err != nil {
		t.Fatal(err)
	}
	p.src.Mark("a")
	p.settled(t)
	buf := make([]byte, 8)
	if k, err := n.Getxattr("user.note", buf); err != nil || string(buf[:k]) != "x" {
		t.Errorf("%q, %v", buf[:max(k, 0)], err)
	}
	if k, err := unix.Getxattr(filepath.Join(dir, "a"), "user.note", buf); err != nil || string(buf[:k]) != "x" {
		t.Errorf("in SOURCE: %q, %v", buf[:max(k, 0)], err)
	}
	if info, err := os.Stat(filepath.Join(dir, "a")); err != nil || !info.ModTime().Equal(time.Unix(1, 0)) {
		t.Errorf("time of the cold file in SOURCE: %v, %v", info.ModTime(), err)
	}
	closeSource(t, p)
}
