package vectorboot

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRemovedNamesStayRemoved kills a daemon that had no time to tell SOURCE.
func TestRemovedNamesStayRemoved(t *testing.T) {
	dir, base := at0(t), t.TempDir()
	p := idle(t, dir, base)
	p.unlink(t, "a")
	p.src.Mark("a")
	d := p.node(t, "d")
	if err := d.Unlink("x"); err != nil {
		t.Fatal(err)
	}
	p.src.Mark("d/x")
	if err := p.Live.Rmdir("d"); err != nil {
		t.Fatal(err)
	}
	p.src.Mark("d")
	p.kill()
	// What somebody else put there meanwhile is not taken for what was removed.
	if err := os.WriteFile(filepath.Join(dir, "b"), []byte("b"), 0o644); err != nil {
		t.Fatal(err)
	}
	p = restart(t, dir, base)
	if names := p.files(t); len(names) != 1 || names[0] != "b" {
		t.Errorf("after a kill there are %q", names)
	}
	wantSource(t, p, "b b")
	if g := p.src.notes.gone; len(g) > 0 {
		t.Errorf("notes left: %v", g)
	}
}

// TestNotesAreBounded makes and removes more names than a log could hold.
// TestKilledBetweenANameAndItsNote: a daemon that is killed right after it removed or
// renamed a name has said before what it was about to do.
func TestKilledBetweenANameAndItsNote(t *testing.T) {
	for _, c := range []struct{ name, from, to string }{
		{"remove", "a", ""}, {"rename", "a", "b"}, {"rename a directory", "d", "e"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, base := at0(t), t.TempDir()
			p := idle(t, dir, base)
			p.bytesOf(t, "a")
			want := len(p.files(t))
			p.src.Leaving(c.from)
			var err error
			if c.to == "" {
				err = p.Live.Unlink(c.from)
				want--
			} else {
				err = p.Live.Rename(c.from, p.Live, c.to, 0)
			}
			if err != nil {
				t.Fatal(err)
			}
			p.kill()
			p = restart(t, dir, base)
			if n, err := p.Live.Walk(c.from); err == nil {
				n.Close()
				t.Errorf("%s came back", c.from)
			}
			if names := p.files(t); len(names) != want {
				t.Errorf("there are %q", names)
			}
			if err := p.src.Wait(context.Background()); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(filepath.Join(dir, c.from)); err == nil {
				t.Errorf("%s is still in SOURCE", c.from)
			}
		})
	}
}

// TestLeavingThatFailed: a name that did not go stays, also after a kill.
func TestLeavingThatFailed(t *testing.T) {
	for _, told := range []bool{true, false} {
		p := at(t, "a")
		settled := p.src.Leaving("a")
		if told {
			settled(false)
			if p.src.notes.isGone("a") {
				t.Error("the note stays")
			}
		}
		if have := p.bytesOf(t, "a"); have != "a" {
			t.Errorf("a is %q", have)
		}
	}
}

func TestNotesAreBounded(t *testing.T) {
	p := idle(t, t.TempDir(), t.TempDir())
	for range 3000 {
		name := strings.Repeat("x", 200)
		p.put(t, p.Live, name, "1")
		p.src.Dirty(p.node(t, name))
		p.unlink(t, name)
		p.src.Mark(name)
		p.src.caughtUp(name)
		p.src.mu.Lock()
		delete(p.src.marked, name)
		p.src.mu.Unlock()
		p.src.caughtUp(name)
	}
	if n := p.src.notes.log.Size(); n > 2*notesRoom {
		t.Errorf("the log has %d bytes", n)
	}
	if k := p.src.notes; len(k.gone) > 0 || len(k.dirty) > 2048 {
		t.Errorf("%d names and %d inodes are noted", len(k.gone), len(k.dirty))
	}
	closeSource(t, p)
	if err := p.Store.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzNotes(f *testing.F) {
	f.Add([]byte("gname\x00d12\x00ra\x00b\x00xa\x00b\x00R\x00Gname\x00D12\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		k := &notes{gone: map[string]bool{}, dirty: map[uint64]bool{}}
		k.replay(b)
		again := &notes{gone: map[string]bool{}, dirty: map[uint64]bool{}}
		again.replay([]byte(k.text()))
		if len(again.gone) != len(k.gone) || len(again.dirty) != len(k.dirty) || len(again.moves) != len(k.moves) {
			t.Errorf("%q is not what was read", k.text())
		}
	})
}
