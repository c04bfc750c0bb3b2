package ggufview

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
)

// Merge joins the shards of a split model as gguf-split --merge does. Nothing of
// the tensors is copied: the view is a new header, and windows on data, the bytes
// of the shards. The File describes that view.
//
// Keys are those of the first shard, in their order, but split.count, which is 0
// and comes last; split.no and split.tensors.count stay. Tensors are those of all
// shards in order, each padded to the alignment of the first shard; padding
// between tensors that a shard has one behind the other is the shard's.
//
// As in llama.cpp's loader, split.no must be the position of the shard,
// split.count their number, split.tensors.count the sum of their tensors, and no
// two tensors may have the same name.
func Merge(shards []*File, data []View) (*File, View, error) {
	if err := checkSplit(shards); err != nil {
		return nil, nil, err
	}
	m := merger{encoder: encoder{order: binary.LittleEndian, align: shards[0].Alignment}}
	if shards[0].BigEndian {
		m.order = binary.BigEndian
	}
	if err := m.keys(shards[0]); err != nil {
		return nil, nil, err
	}
	tensors := 0
	for i, f := range shards {
		tensors += f.NumTensors()
		for _, t := range f.Tensors() {
			if err := m.tensor(data[i], &t); err != nil {
				return nil, nil, fmt.Errorf("shard %d, tensor %s: %w", i+1, quote(t.Name), err)
			}
		}
		m.flush()
	}
	m.order.(binary.ByteOrder).PutUint64(m.b[8:], uint64(tensors))
	if tensors > 0 {
		m.b = append(m.b, make([]byte, padding(int64(len(m.b)), m.align))...)
	}
	view := Concat(append([]View{Bytes(m.b)}, m.parts...)...)
	f, err := Parse(m.b, view.Size())
	if err != nil {
		return nil, nil, fmt.Errorf("the merged header: %w", err)
	}
	return f, view, nil
}

func checkSplit(shards []*File) error {
	tensors := uint64(0)
	for i, f := range shards {
		tensors += uint64(f.NumTensors())
		if f.BigEndian != shards[0].BigEndian {
			return fmt.Errorf("shard %d has another byte order than the first", i+1)
		}
		if err := cmp.Or(f.wantUint("split.no", uint64(i)), f.wantUint("split.count", uint64(len(shards)))); err != nil {
			return fmt.Errorf("shard %d: %w", i+1, err)
		}
	}
	if err := shards[0].wantUint("split.tensors.count", tensors); err != nil {
		return fmt.Errorf("all shards together: %w", err)
	}
	return nil
}

// wantUint checks an integer key.
func (f *File) wantUint(key string, want uint64) error {
	switch have, ok := f.Uint(key); {
	case !ok:
		return fmt.Errorf("there is no %s", key)
	case have != want:
		return fmt.Errorf("%s is %d, not %d", key, have, want)
	}
	return nil
}

// merger writes the header and collects the data.
type merger struct {
	encoder
	parts []View
	end   int64 // of the data so far, padded

	// The window on one shard that is still growing.
	from   View
	off, n int64
}

// keys writes the fixed part and the keys.
func (m *merger) keys(f *File) error {
	m.b = append(m.b, f.b[:fixedBytes]...)
	at, count := int64(fixedBytes), uint64(1)
	for i := range f.KVs {
		kv := &f.KVs[i]
		if kv.Key != "split.count" {
			m.b = append(m.b, f.b[at:kv.end]...)
			count++
		}
		at = kv.end
	}
	m.order.(binary.ByteOrder).PutUint64(m.b[16:], count)
	return m.pair(&KeyEdit{"split.count", uint16(0)})
}

// tensor writes a row of the table and adds the data to the window, or begins
// another one.
func (m *merger) tensor(from View, t *Tensor) error {
	if t.Bytes > math.MaxInt64/2-m.end {
		return fmt.Errorf("the file would have more than 2^62 bytes")
	}
	if _, err := m.encoder.tensor(SpecTensor{Name: t.Name, Type: t.Type, NE: t.NE[:t.Dims]}, m.end); err != nil {
		return err
	}
	if gap := t.Offset - m.off - m.n; m.from == nil || gap != padding(m.n, m.align) {
		m.flush()
		m.from, m.off, m.n = from, t.Offset, t.Bytes
	} else {
		m.n += gap + t.Bytes
	}
	m.end += t.Bytes + padding(t.Bytes, m.align)
	return nil
}

// flush ends the window; zeros follow up to the alignment.
func (m *merger) flush() {
	if m.from == nil {
		return
	}
	m.parts = append(m.parts, Section(m.from, m.off, m.n), Bytes(make([]byte, padding(m.n, m.align))))
	m.from = nil
}
