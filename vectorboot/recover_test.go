package vectorboot

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vbootfs/shm"
)

// TestPagesOfNobody: a daemon that died between a name and its control page leaves
// a page that no model has.
func TestPagesOfNobody(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	page, err := openControl(rt.store, "gone.gguf")
	if err != nil {
		t.Fatal(err)
	}
	page.close()
	if err := rt.Recover(); err != nil {
		t.Fatal(err)
	}
	ents, err := rt.store.Control.Names()
	if err != nil || len(ents) != 1 || ents[0].Name != controlName("m.gguf") {
		t.Errorf("pages %v: %v", ents, err)
	}
}

// TestJournalWithoutAttributes follows a journal on a file system that has no
// extended attributes, as tmpfs of older kernels has none for users.
func TestJournalWithoutAttributes(t *testing.T) {
	base := t.TempDir()
	if err := unix.Mount("none", base, "ramfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(base, 0); err != nil {
			t.Error(err)
		}
	}()
	st, err := shm.Open(shm.Config{Base: filepath.Join(base, "s"), ID: "t", Limit: 64 << 20, Plain: true})
	if err != nil {
		t.Fatal(err)
	}
	putFile(t, st.Live, "m.gguf", []byte("0123456789"))
	putFile(t, st.Stage, "new", []byte("abc"))
	seg, err := st.Live.Lookup("m.gguf")
	if err != nil {
		t.Fatal(err)
	}
	j := journal{Ino: seg.Ino, Generation: 2, Patches: []written{{patch{4, 3}, "new", 0}}}
	if err := New(st, nil).apply(&j, seg); err != nil {
		t.Errorf("the journal is put aside: %v", err)
	}
	b := make([]byte, 10)
	if _, err := seg.ReadAt(b, 0); err != nil || string(b) != "0123abc789" {
		t.Errorf("the model has %q, %v", b, err)
	}
	seg.Close()
	if err := st.Close(); err != nil {
		t.Error(err)
	}
}
