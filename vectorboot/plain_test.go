package vectorboot

import (
	"bytes"
	"os"
	"testing"

	"vbootfs/ggufview"
	"vbootfs/shm"
)

// TestCommitInPlaceNeedsNoRoom: in a store that counts by itself, bytes that take the
// place of others are not counted on top of them. Half of a commit would be left.
func TestCommitInPlaceNeedsNoRoom(t *testing.T) {
	base, err := os.MkdirTemp("/dev/shm", "vbootfs-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	st, err := shm.Open(shm.Config{Base: base, ID: "t", Limit: 16 << 20, Plain: true})
	if err != nil {
		t.Fatal(err)
	}
	rt := New(st, nil)
	rt.SetHistory(0)
	text, err := (&ggufview.Spec{Tensors: []ggufview.SpecTensor{
		{Name: "a", NE: []int64{1 << 20}, Type: ggufview.F32}, {Name: "b", NE: []int64{4}, Type: ggufview.F32},
	}}).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	put(t, rt, "m.gguf", text)
	a, b := staged(t, rt, bytes.Repeat([]byte{1}, 4<<20)), staged(t, rt, bytes.Repeat([]byte{1}, 16))
	hog := staged(t, rt, nil)
	used, limit := st.Usage()
	if err := hog.Allocate(0, 0, limit-used-1<<20); err != nil {
		t.Fatal(err)
	}
	if err := rt.Commit("m.gguf", []TensorEdit{{Name: "b", File: b}, {Name: "a", File: a}}, nil); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"a", "b"} {
		if tensor(t, rt, name)[0] != 1 {
			t.Errorf("tensor %s is as it was", name)
		}
	}
	if now, _ := st.Usage(); now > limit {
		t.Errorf("%d bytes are counted of %d", now, limit)
	}
	for _, n := range []*shm.Node{a, b, hog} {
		n.Close()
	}
	rt.Close()
	if err := st.Close(); err != nil {
		t.Error(err)
	}
}
