package tree

import (
	"context"
	"testing"

	"vbootfs/ggufview"
)

// FuzzCommands gives anything to the three kinds of ctl files. The model is the same
// for all runs, so commands that are understood have changed it before. What fails is short to tell.
func FuzzCommands(f *testing.F) {
	for _, line := range []string{"", "activate", "activate a.gguf\n", "load ../x", "evict m.gguf", "pin", "unpin ", "interrupt 0xFF",
		"interrupt 1 timeout=1ns", "set general.name string x", "set x array[int32] [1,2]", "set x uint8 256", "unset general.name",
		"commit", "abort", "rollback 1", "publish", "sync", "\x00", "set  x\ty", "set general.alignment uint32 3"} {
		f.Add(line)
	}
	rt := start(f)
	spec := ggufview.Spec{KV: []ggufview.SpecKV{{Key: "general.name", Value: "m"}},
		Tensors: []ggufview.SpecTensor{{Name: "t", Type: ggufview.F32, NE: []int64{4}}}}
	b, err := spec.Bytes()
	if err != nil {
		f.Fatal(err)
	}
	load(f, rt, "m.gguf", b)
	if err := rt.NewDraft("m.gguf", "d"); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, line string) {
		at := At{RT: rt, Path: "m.gguf"}
		draft := At{RT: rt, Path: "m.gguf", Draft: rt.Draft("m.gguf", "d")}
		answer := func(err error) {
			if err != nil && len(err.Error()) > 1000+8*len(line) {
				t.Errorf("%q: the error has %d bytes", line, len(err.Error()))
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // nobody acknowledges: a command that waits is interrupted
		doRuntime(ctx, at, line, answer)
		doModel(ctx, at, line, answer)
		doDraft(ctx, draft, line, answer)
		if g := rt.Acquire("m.gguf"); g == nil {
			t.Fatalf("%q: the model is gone", line)
		} else {
			g.Release()
		}
	})
}
