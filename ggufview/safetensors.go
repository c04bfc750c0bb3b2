package ggufview

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A safetensors file is
//
//	u64 n | n bytes of JSON, padded with spaces | values
//
// where the JSON has "__metadata__" with strings and, for each tensor, dtype,
// shape and data_offsets [begin, end) relative to the values, without holes.
// Source: the safetensors README, "Format".

// safetensorsTypes names the types that the format has in common with GGUF.
var safetensorsTypes = map[Type]string{
	F64: "F64", F32: "F32", F16: "F16", BF16: "BF16", I64: "I64", I32: "I32", I16: "I16", I8: "I8",
}

// stEntry is a tensor's value in the JSON header.
type stEntry struct {
	Dtype   string
	Shape   []int64
	Offsets [2]int64
}

// Safetensors is a whole model as a safetensors file: meta as __metadata__ and
// the tensors in the given order, raw(i) being the stored bytes of tensor i.
// Types that the format has are stored as they are, low byte first. The others
// are converted to quantAs (F32 or BF16), or, without a dequantiser, stored as
// U8 [rows, bytes per row]. Names that are not UTF-8 get U+FFFD for each bad
// byte. Errors: two tensors under one name, a tensor named __metadata__, sizes
// that do not fit the shapes.
func Safetensors(meta map[string]string, tensors []TensorDesc, raw func(i int) View, quantAs Type) (View, error) {
	if quantAs != F32 && quantAs != BF16 {
		return nil, fmt.Errorf("safetensors: quantised tensors as %v, want F32 or BF16", quantAs)
	}
	h := stHeader{jsonText{dst: []byte("{")}, make(map[string]bool, len(tensors)+1)}
	h.seen["__metadata__"] = true
	if len(meta) > 0 {
		h.raw(`"__metadata__":`)
		h.meta(meta)
	}
	parts := make([]View, 1, len(tensors)+1) // the header comes first, when it is complete
	var off int64
	for i := range tensors {
		entry, body, err := stTensor(&tensors[i], raw(i), quantAs)
		if err != nil {
			return nil, fmt.Errorf("safetensors: %w", err)
		}
		entry.Offsets = [2]int64{off, off + body.Size()}
		off = entry.Offsets[1]
		if err := h.add(tensors[i].Name); err != nil {
			return nil, err
		}
		h.tensor(entry)
		parts = append(parts, body)
	}
	parts[0] = Bytes(h.bytes())
	return Concat(parts...), nil
}

// stTensor chooses how a tensor is stored.
func stTensor(d *TensorDesc, raw View, quantAs Type) (stEntry, View, error) {
	if err := d.check(raw); err != nil {
		return stEntry{}, nil, err
	}
	shape := append([]int64{}, d.Shape...) // never null in JSON
	if dtype, ok := safetensorsTypes[d.Type]; ok {
		body, err := nativeView(d.Type, d.BigEndian, raw)
		return stEntry{Dtype: dtype, Shape: shape}, body, err
	}
	if !d.Type.CanDequantize() {
		return stEntry{Dtype: "U8", Shape: d.bytesShape()}, raw, nil
	}
	convert := F32View
	if quantAs == BF16 {
		convert = BF16View
	}
	body, err := convert(d.Type, d.BigEndian, raw)
	return stEntry{Dtype: quantAs.String(), Shape: shape}, body, err
}

// stHeader writes the JSON object in order, which a map would not keep.
type stHeader struct {
	jsonText
	seen map[string]bool // of all names, as they are shown: two may differ only in bad bytes
}

// add begins an entry.
func (h *stHeader) add(name string) error {
	name = strings.ToValidUTF8(name, "\ufffd")
	if h.seen[name] {
		return fmt.Errorf("safetensors: the name %q is taken", name)
	}
	h.seen[name] = true
	if len(h.dst) > 1 {
		h.raw(",")
	}
	h.text([]byte(name))
	h.raw(":")
	return nil
}

func (h *stHeader) tensor(e stEntry) {
	h.raw(`{"dtype":"` + e.Dtype + `","shape":[`)
	for i, n := range e.Shape {
		if i > 0 {
			h.raw(",")
		}
		h.int("", n)
	}
	h.int(`],"data_offsets":[`, e.Offsets[0])
	h.int(",", e.Offsets[1])
	h.raw("]}")
}

// meta writes the strings by name.
func (h *stHeader) meta(values map[string]string) {
	for i, k := range slices.Sorted(maps.Keys(values)) {
		if h.raw("{"); i > 0 {
			h.dst[len(h.dst)-1] = ','
		}
		h.text([]byte(k))
		h.raw(":")
		h.text([]byte(values[k]))
	}
	h.raw("}")
}

// bytes is the finished header with its length, padded so that values start at a multiple of eight.
func (h *stHeader) bytes() []byte {
	text := append(h.dst, '}')
	text = append(text, "       "[:(8-len(text)%8)%8]...)
	return append(le.AppendUint64(nil, uint64(len(text))), text...)
}
