package vectorboot

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vbootfs/shm"
)

// TestKilledInAnExchange exchanges cold files; the daemon is killed before SOURCE
// and the notes know, or after SOURCE knows and the notes do not.
func TestKilledInAnExchange(t *testing.T) {
	for _, noted := range []bool{false, true} {
		dir, base := t.TempDir(), t.TempDir()
		for _, name := range []string{"a", "b", "c"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("was "+name), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		p := idle(t, dir, base)
		if err := p.Live.Rename("a", p.Live, "b", unix.RENAME_EXCHANGE); err != nil {
			t.Fatal(err)
		}
		if noted {
			if err := p.src.notes.add('x', "a", "b"); err != nil {
				t.Fatal(err)
			}
			if err := p.src.root.rename("a", "b", unix.RENAME_EXCHANGE); err != nil {
				t.Fatal(err)
			}
		}
		p.kill()
		p = restart(t, dir, base)
		wantSource(t, p, "a was b, b was a, c was c")
		for name, want := range map[string]string{"a": "was b", "b": "was a", "c": "was c"} {
			if have := p.bytesOf(t, name); have != want {
				t.Errorf("noted %v: %s is %q, want %q", noted, name, have, want)
			}
		}
	}
}

// TestKilledInARenameOfLinkedFiles: all names of a cold file are somewhere else.
func TestKilledInARenameOfLinkedFiles(t *testing.T) {
	dir, base := at0(t), t.TempDir()
	if err := os.Link(filepath.Join(dir, "d/x"), filepath.Join(dir, "d/y")); err != nil {
		t.Fatal(err)
	}
	p := idle(t, dir, base)
	p.src.Leaving("d")
	if err := p.Live.Rename("d", p.Live, "e", 0); err != nil {
		t.Fatal(err)
	}
	p.kill()
	p = restart(t, dir, base)
	wantSource(t, p, "a a, e/x d/x, e/y d/x")
}

// TestLostBytesReplacedByALink: what SOURCE has instead of the bytes of a cold name
// is one of several names of a file.
func TestLostBytesReplacedByALink(t *testing.T) {
	dir, base := at0(t), t.TempDir()
	p := idle(t, dir, base)
	p.kill()
	if err := os.Remove(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "d/x"), filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	p = restart(t, dir, base)
	if have := p.bytesOf(t, "a"); have != "d/x" {
		t.Errorf("a is %q", have)
	}
	wantSource(t, p, "a d/x, d/x d/x")
}

// TestOnlyLinksAreGivenAway: somebody puts another file in the place of a link that was just made.
func TestOnlyLinksAreGivenAway(t *testing.T) {
	p := at(t, "a")
	if err := p.src.root.lchown("a", 1234, 1234); !errors.Is(err, unix.ESTALE) {
		t.Errorf("giving away a file: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(p.dir, "a"), &st); err != nil || int(st.Uid) != os.Geteuid() {
		t.Errorf("the file belongs to %d, %v", st.Uid, err)
	}
	closeSource(t, p)
}

// TestOnlyOurDirectoriesAreGivenAway: somebody puts another's directory in the
// place of one while it is made.
func TestOnlyOurDirectoriesAreGivenAway(t *testing.T) {
	p := at(t, "private/x")
	p.src.one.Lock()
	n, err := p.Live.Mkdir("d", 0o777, &shm.Owner{UID: 1234, GID: 1234})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	st, err := n.Stat()
	if err != nil {
		t.Fatal(err)
	}
	err = p.src.make("d", n, func(q string) error {
		if err := p.src.root.mkdir(q, 0o700); err != nil {
			return err
		}
		return os.Rename(filepath.Join(p.dir, "private"), filepath.Join(p.dir, "d"))
	})
	if !errors.Is(err, unix.EEXIST) {
		t.Errorf("making it: %v", err)
	}
	if err := p.src.attributes("d", n, &st); !errors.Is(err, unix.EEXIST) {
		t.Errorf("giving it away: %v", err)
	}
	p.src.one.Unlock()
	closeSource(t, p)
}
