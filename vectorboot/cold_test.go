package vectorboot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestReplacementOverColdBytes syncs a file that is to replace a cold one and then
// does not: the cold one still has its bytes.
func TestReplacementOverColdBytes(t *testing.T) {
	p := at(t, "old")
	n, name := p.staged(t, "new!")
	if err := p.src.SyncAs("old", n); err != nil {
		t.Fatal(err)
	}
	if have := listing(t, p.dir); !strings.HasSuffix(have, "new!") {
		t.Errorf("fsync left %q", have)
	}
	if err := p.Stage.Unlink(name); err != nil {
		t.Fatal(err)
	}
	p.src.Mark("old")
	wantSource(t, p, "old old")
	if have := p.bytesOf(t, "old"); have != "old" {
		t.Errorf("the model that is shown has %q", have)
	}
	closeSource(t, p)
}

func TestReplacementOfColdBytes(t *testing.T) {
	p := at(t, "old")
	n, name := p.staged(t, "new!")
	if err := p.src.SyncAs("old", n); err != nil {
		t.Fatal(err)
	}
	if have := p.bytesOf(t, "old"); have != "old" {
		t.Errorf("before it is replaced, the file has %q", have)
	}
	if err := p.Stage.Rename(name, p.Live, "old", 0); err != nil {
		t.Fatal(err)
	}
	p.src.Mark("old")
	wantSource(t, p, "old new!")
	if left, err := os.ReadDir(filepath.Join(p.dir, workDir)); len(left) > 0 || err != nil {
		t.Errorf("left behind: %v %v", left, err)
	}
	closeSource(t, p)
}

func closeSource(t *testing.T, p *pair) {
	t.Helper()
	if err := p.src.Close(); err != nil {
		t.Error(err)
	}
}

func TestKilledAfterAReplacementWasSynced(t *testing.T) {
	dir, base := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "old"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := idle(t, dir, base)
	n, name := p.staged(t, "new!")
	if err := p.src.SyncAs("old", n); err != nil {
		t.Fatal(err)
	}
	if err := p.Stage.Unlink(name); err != nil {
		t.Fatal(err)
	}
	p.kill()
	p = restart(t, dir, base)
	if have := p.bytesOf(t, "old"); have != "old" {
		t.Errorf("after a kill the file has %q", have)
	}
	wantSource(t, p, "old old")
}

// TestColdNamesKeepTheirBytes gives cold files other names in every way.
func TestColdNamesKeepTheirBytes(t *testing.T) {
	tests := []struct {
		name, want string
		do         func(t *testing.T, p *pair)
	}{
		{"link, and remove the first", "b a, d/x d/x", func(t *testing.T, p *pair) {
			if err := p.Live.Link(p.node(t, "a"), "b"); err != nil {
				t.Fatal(err)
			}
			p.unlink(t, "a")
			p.src.Mark("b")
			p.src.Mark("a")
		}},
		{"rename", "b a, d/x d/x", func(t *testing.T, p *pair) { p.rename(t, "a", "b", 0) }},
		{"rename over another", "a d/x", func(t *testing.T, p *pair) { p.rename(t, "d/x", "a", 0) }},
		{"rename a directory, and a new file of the old name", "a a, d new, e/x d/x", func(t *testing.T, p *pair) {
			p.rename(t, "d", "e", 0)
			p.put(t, p.Live, "d", "new")
		}},
		{"rename twice", "a a, f/y d/x", func(t *testing.T, p *pair) {
			p.rename(t, "d", "f", 0)
			p.rename(t, "f/x", "f/y", 0)
		}},
		{"exchange", "a d/x, d/x a", func(t *testing.T, p *pair) { p.rename(t, "a", "d/x", unix.RENAME_EXCHANGE) }},
		{"exchange a file and a directory", "a/x d/x, d a", func(t *testing.T, p *pair) { p.rename(t, "a", "d", unix.RENAME_EXCHANGE) }},
		{"exchange with something pending", "a/x d/x, a/y 1, d a", func(t *testing.T, p *pair) {
			p.put(t, p.node(t, "d"), "y", "1")
			p.rename(t, "a", "d", unix.RENAME_EXCHANGE)
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := at(t, "a", "d/x")
			p.src.one.Lock() // SOURCE is busy: everything waits
			test.do(t, p)
			for _, name := range p.files(t) {
				n := p.node(t, name)
				if f, err := p.src.openCold(name, n); err == nil {
					f.Close()
				} else if p.src.IsCold(n) && test.name[:4] != "link" {
					t.Errorf("while SOURCE is behind: %v", err)
				}
			}
			p.src.one.Unlock()
			wantSource(t, p, test.want)
			closeSource(t, p)
		})
		t.Run(test.name+", and be killed", func(t *testing.T) {
			dir, base := at0(t), t.TempDir()
			p := idle(t, dir, base)
			p.src.one.Lock()
			test.do(t, p)
			p.kill()
			wantSource(t, restart(t, dir, base), test.want)
		})
	}
}

// TestRenameOfWhatIsBeingWrittenBack renames while a name below is already on its way.
func TestRenameOfWhatIsBeingWrittenBack(t *testing.T) {
	for _, test := range []struct {
		to    string
		flags uint32
		want  string
	}{{"e", 0, "a a, e/x d/x, e/y 1"}, {"a", unix.RENAME_EXCHANGE, "a/x d/x, a/y 1, d a"}} {
		for _, fsync := range []bool{false, true} {
			p := at(t, "a", "d/x")
			p.src.one.Lock() // SOURCE is busy
			p.put(t, p.node(t, "d"), "y", "1")
			done := make(chan error, 1)
			if fsync {
				go func() { done <- p.src.Sync("d/y") }()
			} else {
				done <- nil
			}
			p.src.mu.Lock()
			for p.src.busy != "d/y" && p.src.syncing["d/y"] == 0 {
				p.src.mu.Unlock()
				time.Sleep(time.Millisecond)
				p.src.mu.Lock()
			}
			p.src.mu.Unlock()
			p.rename(t, "d", test.to, test.flags)
			p.src.one.Unlock()
			if err := <-done; err != nil {
				t.Error(err)
			}
			wantSource(t, p, test.want)
			closeSource(t, p)
		}
	}
}
