package tree

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"vbootfs/ggufview"
	"vbootfs/vectorboot"
)

// Keys of what a generation remembers (vectorboot.Generation.Once).
type (
	tensorNames struct{}
	keyNames    struct{}
	tensorStats struct{ index int }
	valueSize   struct{ kv *ggufview.KV }
)

// namesOf is the file names of n things of a generation, made when first needed.
func namesOf(g *vectorboot.Generation, key any, n int, name func(int) string) *names {
	v, _ := g.Once(key, func() (any, error) { return newNames(n, name), nil })
	return v.(*names)
}

func (at At) tensorNames() *names {
	f := at.Gen.Info
	return namesOf(at.Gen, tensorNames{}, f.NumTensors(), func(i int) string { return f.TensorAt(i).Name })
}

func listTensors(at At) []string { return at.tensorNames().list }

func findTensor(at At, name string) (*Row, At, bool) {
	f := at.Gen.Info
	if i, ok := at.tensorNames().odd[name]; ok {
		t := f.TensorAt(i)
		at.Tensor = &t
		return tensorRow, at, true
	}
	t, ok := f.Tensor(name)
	at.Tensor = t
	return tensorRow, at, ok && plain(name)
}

// raw is the stored bytes of the tensor.
func (at At) raw() ggufview.View { return rawOf(at.Gen, at.Tensor) }

func rawOf(g *vectorboot.Generation, t *ggufview.Tensor) ggufview.View {
	return ggufview.Section(g, t.Offset, t.Bytes)
}

func descOf(f *ggufview.File, t *ggufview.Tensor) ggufview.TensorDesc {
	return ggufview.TensorDesc{Name: t.Name, Type: t.Type, Shape: t.Shape(), BigEndian: f.BigEndian}
}

func (at At) desc() ggufview.TensorDesc { return descOf(at.Gen.Info, at.Tensor) }

func dataRaw(at At) (ggufview.View, error)    { return at.raw(), nil }
func dataRawNpy(at At) (ggufview.View, error) { return ggufview.RawNpy(at.desc(), at.raw()) }
func dataF32Npy(at At) (ggufview.View, error) { return ggufview.F32Npy(at.desc(), at.raw()) }
func dataF32(at At) (ggufview.View, error) {
	return ggufview.F32View(at.Tensor.Type, at.Gen.Info.BigEndian, at.raw())
}

// hasValues: ggml has a dequantiser for the type.
func hasValues(at At) bool { return at.Tensor.Type.CanDequantize() }

func (at At) shape() string { return strings.Trim(fmt.Sprint(at.Tensor.Shape()), "[]") }

func showType(at At) ([]byte, error)   { return []byte(at.Tensor.Type.String() + "\n"), nil }
func showShape(at At) ([]byte, error)  { return []byte(at.shape() + "\n"), nil }
func showOffset(at At) ([]byte, error) { return fmt.Appendln(nil, at.Tensor.Offset), nil }
func showBytes(at At) ([]byte, error)  { return fmt.Appendln(nil, at.Tensor.Bytes), nil }
func showTensor(at At) ([]byte, error) {
	return append(at.Gen.Info.AppendTensorJSON(nil, at.Tensor), '\n'), nil
}

func tensorXattrs(at At) []Xattr {
	return []Xattr{
		{"user.gguf.type", at.Tensor.Type.String()},
		{"user.gguf.shape", at.shape()},
		{"user.gguf.offset", strconv.FormatInt(at.Tensor.Offset, 10)},
		{"user.gguf.nbytes", strconv.FormatInt(at.Tensor.Bytes, 10)},
	}
}

// statsBytes is the size of every stats.json: nobody who merely looks at a
// directory should have statistics computed. Spaces fill it up. The longest one
// has 64 counts and 10 other numbers of at most 24 characters each.
const statsBytes = 2 << 10

// statsText is a stats.json and what it says.
type statsText struct {
	ggufview.View
	stats *ggufview.Stats
}

func dataStats(at At) (ggufview.View, error) { return lazyStats(at.Gen, at.Tensor), nil }

func lazyStats(g *vectorboot.Generation, t *ggufview.Tensor) *lazy {
	return newKept(g, tensorStats{t.Index}, statsBytes, func(ctx context.Context) (ggufview.View, error) {
		s, err := ggufview.ComputeStats(ctx, t.Type, g.Info.BigEndian, unmapped{rawOf(g, t)})
		if err != nil {
			return nil, err
		}
		b, err := json.Marshal(s)
		b = append(b, bytes.Repeat([]byte(" "), max(0, statsBytes-1-len(b)))...)
		return statsText{ggufview.Bytes(append(b, '\n')), s}, err
	})
}

// statsOf is the statistics of a tensor, shared with its stats.json.
func statsOf(ctx context.Context, g *vectorboot.Generation, t *ggufview.Tensor) (*ggufview.Stats, error) {
	v, err := lazyStats(g, t).content(ctx)
	if err != nil {
		return nil, err
	}
	return v.(statsText).stats, nil
}

// unmapped reads with system calls what could be read in place: goroutines that
// compute have nobody who would catch a fault in the mapping.
type unmapped struct{ ggufview.View }
