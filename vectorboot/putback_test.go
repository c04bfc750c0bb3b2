package vectorboot

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFailedCommitIsTakenBack: when bytes cannot be written in the middle of a
// commit, those before them are as they were, and nothing is left behind.
func TestFailedCommitIsTakenBack(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	before := wholeFile(t, rt, "m.gguf")
	whole, short := staged(t, rt, []byte("ABCDEFGH")), staged(t, rt, []byte("short"))
	defer whole.Close()
	defer short.Close()
	err := rt.advance("commit to", target{path: "m.gguf"}, func(_ *Model, g *Generation) (*step, error) {
		a, _ := g.Info.Tensor("a")
		b, _ := g.Info.Tensor("b")
		return &step{event: "commit", pieces: []piece{{patch{b.Offset, b.Bytes}, whole, 0}, {patch{a.Offset, a.Bytes}, short, 0}}}, nil
	})
	if !errors.Is(err, unix.EIO) {
		t.Errorf("%v, want EIO", err)
	}
	if !bytes.Equal(wholeFile(t, rt, "m.gguf"), before) || rt.Generation("m.gguf") != 1 {
		t.Error("half of the commit happened")
	}
	if left, err := rt.store.Stage.Names(); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := commit(t, rt, "a", floats(5, 6, 7, 8)); err != nil || rt.Generation("m.gguf") != 2 {
		t.Errorf("the next commit: %v", err)
	}
	if list := rt.History("m.gguf"); len(list) != 2 {
		t.Errorf("history has %v", list)
	}
}
