package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"vbootfs/ggufview"
)

// What clients do while their daemon is killed follows from a seed, so that
// the test knows what must be there afterwards from the number of acts that were done.

// body is a content: a version, whose two tensors a commit may have filled.
type body struct {
	Version int  // from 1 on; 0: there is no file
	Fill    byte // 0: the tensors are those of the version
}

// bodies makes and recognises contents.
type bodies struct {
	versions [][]byte
	tensors  [][]ggufview.Tensor // that commits fill, by version
}

// filled are the tensors that commits fill.
var filled = []string{"token_embd.weight", "output_norm.weight"}

func loadBodies(dir string) (*bodies, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.gguf"))
	slices.Sort(names)
	b := &bodies{}
	for _, name := range names {
		content, err2 := os.ReadFile(name)
		f, err3 := ggufview.Parse(content, int64(len(content)))
		if err = errors.Join(err, err2, err3); err != nil {
			return nil, err
		}
		var list []ggufview.Tensor
		for _, n := range filled {
			t, ok := f.Tensor(n)
			if !ok {
				return nil, fmt.Errorf("%s has no %s", name, n)
			}
			list = append(list, *t)
		}
		b.versions, b.tensors = append(b.versions, content), append(b.tensors, list)
	}
	return b, err
}

// makeBodies writes models of several sizes into a directory.
func makeBodies(t testing.TB) string {
	t.Helper()
	dir := tempDir(t)
	for i, size := range []int64{1 << 10, 1 << 10, 1 << 20, 3 << 20} {
		g := ggufview.Gen{Bytes: size, Tokens: 10, Seed: uint64(i)}
		if err := generate(g, filepath.Join(dir, fmt.Sprintf("%d.gguf", i+1))); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func (b *bodies) bytes(x body) []byte {
	if x.Version == 0 {
		return nil
	}
	out := b.versions[x.Version-1]
	if x.Fill != 0 {
		out = bytes.Clone(out)
		for _, t := range b.tensors[x.Version-1] {
			copy(out[t.Offset:], bytes.Repeat([]byte{x.Fill}, int(t.Bytes)))
		}
	}
	return out
}

// is finds out which content this is.
func (b *bodies) is(content []byte) (body, bool) {
	for i, v := range b.versions {
		if len(v) != len(content) {
			continue
		}
		for _, x := range []body{{i + 1, 0}, {i + 1, content[b.tensors[i][0].Offset]}} {
			if bytes.Equal(b.bytes(x), content) {
				return x, true
			}
		}
	}
	return body{}, false
}

// part reports whether this is the beginning of a version.
func (b *bodies) part(content []byte) bool {
	return slices.ContainsFunc(b.versions, func(v []byte) bool { return bytes.HasPrefix(v, content) })
}

// world is what files a client has; names that begin with keep are written with
// fsync only, and by nothing else.
type world map[string]body

var (
	worldNames = []string{"0.gguf", "1.gguf", "2.gguf"}
	keepNames  = []string{"keep0.gguf", "keep1.gguf"}
)

// act is one thing that a client does.
type act struct {
	Kind string
	A, B string
	Body body
}

// plan is a sequence of acts.
type plan struct {
	w world
	r *rand.Rand
}

func newPlan(w world, seed uint64) *plan {
	return &plan{maps.Clone(w), rand.New(rand.NewPCG(seed, 7))}
}

var actKinds = []string{"write", "write", "part", "part", "rename", "rename", "remove", "commit", "commit", "commit", "evict", "keep", "keep", "read"}

// next chooses an act that is possible now.
func (p *plan) next() act {
	for {
		a := act{
			Kind: actKinds[p.r.IntN(len(actKinds))],
			A:    worldNames[p.r.IntN(len(worldNames))], B: worldNames[p.r.IntN(len(worldNames))],
			Body: body{1 + p.r.IntN(4), byte(1 + p.r.IntN(250))},
		}
		switch a.Kind {
		case "write", "part":
			a.Body.Fill = 0
			return a
		case "keep":
			a.A = keepNames[p.r.IntN(len(keepNames))]
			a.Body.Fill = 0
			return a
		}
		if a.Body.Version = p.w[a.A].Version; a.Body.Version != 0 && (a.Kind != "rename" || a.A != a.B) {
			return a
		}
	}
}

// apply changes the world as an act should.
func (w world) apply(a act) {
	switch a.Kind {
	case "write", "part", "keep", "commit":
		w[a.A] = a.Body
	case "remove":
		delete(w, a.A)
	case "rename":
		w[a.B] = w[a.A]
		delete(w, a.A)
	}
}

// after returns the world after some acts of a plan, and the act that came next.
func after(w world, seed uint64, acts int) (world, act) {
	p := newPlan(w, seed)
	for range acts {
		p.w.apply(p.next())
	}
	return p.w, p.next()
}
