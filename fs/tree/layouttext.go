package tree

import (
	"bytes"
	"encoding/json"
	"io"
	"path"

	"vbootfs/ggufview"
	"vbootfs/vectorboot"
)

// Keys of Generation.Once.
type (
	layoutJSON struct{}
	layoutTSV  struct{}
)

// textOf is a text of a generation. It is measured when it is first asked for; a
// short one is kept from then on, a long one written anew by each read that the
// kernel has to ask for.
func textOf(g *vectorboot.Generation, key any, text func() (ggufview.View, error)) (ggufview.View, error) {
	v, err := g.Once(key, func() (any, error) {
		v, err := text()
		if err != nil || v.Size() > keepBelow {
			return v, err
		}
		b, err := io.ReadAll(io.NewSectionReader(v, 0, v.Size()))
		return ggufview.Bytes(b), err
	})
	if err != nil {
		return nil, err
	}
	return v.(ggufview.View), nil
}

func dataTSV(at At) (ggufview.View, error) {
	return textOf(at.Gen, layoutTSV{}, func() (ggufview.View, error) { return at.Gen.Info.LayoutTSV(), nil })
}

func dataLayout(at At) (ggufview.View, error) {
	return textOf(at.Gen, layoutJSON{}, func() (ggufview.View, error) { return layout(at) })
}

// layout is layout.json: see docs/INTERFACE.md for the fields.
func layout(at At) (ggufview.View, error) {
	g, f := at.Gen, at.Gen.Info
	order := "little"
	if f.BigEndian {
		order = "big"
	}
	head, err := json.Marshal(struct {
		ABI        int     `json:"abi"`
		Model      string  `json:"model"`
		Generation uint64  `json:"generation"`
		Version    uint32  `json:"gguf_version"`
		Order      string  `json:"byte_order"`
		Alignment  int64   `json:"alignment"`
		Arch       string  `json:"architecture"`
		FileBytes  int64   `json:"file_bytes"`
		DataOffset int64   `json:"data_offset"`
		Segment    segment `json:"segment"`
	}{1, g.Path, g.N, f.Version, order, f.Alignment, f.Architecture(), f.Size, f.DataOffset,
		segment{Path: segmentPath(at), Bytes: f.Size}})
	if err != nil {
		return nil, err
	}
	return f.TensorsJSON(string(bytes.TrimSuffix(head, []byte("}")))+",\n\"tensors\":", "}\n"), nil
}

type segment struct {
	Path  *string `json:"path"`     // null: there is no one file that has all the bytes
	Name  *string `json:"shm_name"` // for shm_open(3); null: the segment is not directly in /dev/shm
	Bytes int64   `json:"bytes"`
}

func segmentPath(at At) *string {
	if at.Gen.Seg == nil {
		return nil
	}
	p := path.Join(at.RT.Store().Root, "live", at.Gen.Path)
	return &p
}

// ofActive shows a text of the active model; while there is none it is empty.
func ofActive(data func(At) (ggufview.View, error)) func(At) (ggufview.View, error) {
	return func(at At) (ggufview.View, error) {
		at.Path = at.RT.Active()
		at.Gen = at.RT.Acquire(at.Path)
		if at.Gen == nil {
			return ggufview.Bytes(nil), nil
		}
		v, err := data(at)
		if err != nil {
			at.Gen.Release()
			return nil, err
		}
		return held{v, at.Gen.Release}, nil
	}
}
