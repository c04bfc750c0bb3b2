package tree

import (
	"bytes"
	"testing"

	"vbootfs/ggufview"
	"vbootfs/shm"
	"vbootfs/vectorboot"
)

// TestStagedBytesStay: a writer that goes on after a close() of a duplicate does not
// change what the draft has: a commit may have checked it.
func TestStagedBytesStay(t *testing.T) {
	st, err := shm.Open(shm.Config{Base: t.TempDir(), ID: "t", Limit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	var have []*shm.Node
	s := newStaged(At{RT: vectorboot.New(st, nil), Draft: &vectorboot.Draft{}}, ggufview.Section(bytes.NewReader([]byte("old!")), 0, 4), true, func(n *shm.Node) error {
		own, err := n.Dup()
		have = append(have, own)
		return err
	})
	for _, text := range []string{"good", "evil"} {
		if _, err := s.WriteAt([]byte(text), 0); err != nil {
			t.Fatal(err)
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Truncate(0); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"good", "evil"} {
		b := make([]byte, 4)
		if _, err := have[i].ReadAt(b, 0); err != nil || string(b) != want {
			t.Errorf("staged %q, the draft has %q, %v", want, b, err)
		}
		have[i].Close()
	}
	s.Close()
	if err := st.Close(); err != nil {
		t.Error(err)
	}
}
