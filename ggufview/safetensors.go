package ggufview

import (
	"fmt"
	"maps"
	"math"
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
	dtype string
	shape []int64
	bytes int64
}

// Safetensors is a whole model as a safetensors file: meta as __metadata__ and
// the tensors in the given order, raw(i) being the stored bytes of tensor i.
// Types that the format has are stored as they are, low byte first. The others
// are converted to quantAs (F32 or BF16), or, without a dequantiser, stored as
// U8 [rows, bytes per row]. Names that are not UTF-8 get U+FFFD for each bad
// byte. Errors: two tensors under one name, a tensor named __metadata__, sizes
// that do not fit the shapes.
func Safetensors(meta map[string]string, tensors []TensorDesc, raw func(i int) View, quantAs Type) (View, error) {
	h := stHeader{}
	if err := h.write(meta, len(tensors), func(i int) TensorDesc { return tensors[i] }, quantAs); err != nil {
		return nil, err
	}
	parts := make([]View, 1, len(tensors)+1)
	parts[0] = Bytes(append(le.AppendUint64(nil, uint64(len(h.dst))), h.dst...))
	for i := range tensors {
		body, err := stBody(&tensors[i], raw(i), quantAs)
		if err != nil {
			return nil, fmt.Errorf("safetensors: %w", err)
		}
		parts = append(parts, body)
	}
	return Concat(parts...), nil
}

// SafetensorsSize is the size of what Safetensors makes of n tensors, or its
// error, found without making anything.
func SafetensorsSize(meta map[string]string, n int, desc func(i int) TensorDesc, quantAs Type) (int64, error) {
	h := stHeader{jsonText: jsonText{measure: true}}
	if err := h.write(meta, n, desc, quantAs); err != nil {
		return 0, err
	}
	return 8 + h.n + h.values, nil
}

// stored says how the tensor is stored.
func (d *TensorDesc) stored(quantAs Type) (e stEntry, err error) {
	n, err := d.elements()
	if err != nil {
		return e, err
	}
	info := &types[d.Type]
	size := n / int64(info.block) * int64(info.bytes)
	if dtype, ok := safetensorsTypes[d.Type]; ok {
		return stEntry{dtype, d.Shape, size}, nil
	}
	if !d.Type.CanDequantize() {
		return stEntry{"U8", d.bytesShape(), size}, nil
	}
	if n > math.MaxInt64/4 {
		return e, fmt.Errorf("tensor %q: too large as %v", d.Name, quantAs)
	}
	return stEntry{quantAs.String(), d.Shape, n * int64(types[quantAs].bytes)}, nil
}

// stBody is the values of a tensor as they are stored.
func stBody(d *TensorDesc, raw View, quantAs Type) (View, error) {
	if err := d.check(raw); err != nil {
		return nil, err
	}
	if _, ok := safetensorsTypes[d.Type]; ok {
		return nativeView(d.Type, d.BigEndian, raw)
	}
	if !d.Type.CanDequantize() {
		return raw, nil
	}
	if quantAs == BF16 {
		return BF16View(d.Type, d.BigEndian, raw)
	}
	return F32View(d.Type, d.BigEndian, raw)
}

// stHeader writes the JSON object in order, which a map would not keep, or
// measures it.
type stHeader struct {
	jsonText
	values int64 // bytes of the values so far
}

// write makes the whole header, padded so that values start at a multiple of eight.
func (h *stHeader) write(meta map[string]string, n int, desc func(i int) TensorDesc, quantAs Type) error {
	if quantAs != F32 && quantAs != BF16 || n > maxEntries {
		return fmt.Errorf("safetensors: %d tensors, quantised ones as %v", n, quantAs)
	}
	const metaName = "__metadata__"
	sep := "{"
	if len(meta) > 0 {
		h.raw(sep + `"` + metaName + `":`)
		h.meta(meta)
		sep = ","
	}
	names := newIndex(n) // as they are shown: two may differ only in bad bytes
	name := func(i int) string { return strings.ToValidUTF8(desc(i).Name, "\ufffd") }
	for i := range n {
		d, shown := desc(i), name(i)
		if _, dup := names.add(shown, i, name); dup || shown == metaName {
			return fmt.Errorf("safetensors: the name %q is taken", shown)
		}
		if !d.Type.Known() {
			return fmt.Errorf("safetensors: tensor %q: unknown %v", d.Name, d.Type)
		}
		e, err := d.stored(quantAs)
		if err != nil {
			return fmt.Errorf("safetensors: %w", err)
		}
		if e.bytes > math.MaxInt64/2-h.values {
			return fmt.Errorf("safetensors: more than 2^62 bytes")
		}
		h.raw(sep)
		h.text([]byte(shown))
		h.tensor(e)
		sep = ","
	}
	if sep == "{" {
		h.raw(sep)
	}
	h.raw("}")
	h.raw("       "[:(8-(int(h.n)+len(h.dst))%8)%8])
	return nil
}

func (h *stHeader) tensor(e stEntry) {
	h.raw(`:{"dtype":"` + e.dtype + `","shape":[`)
	for i, n := range e.shape {
		if i > 0 {
			h.raw(",")
		}
		h.int("", n)
	}
	h.int(`],"data_offsets":[`, h.values)
	h.values += e.bytes
	h.int(",", h.values)
	h.raw("]}")
}

// meta writes the strings by name.
func (h *stHeader) meta(values map[string]string) {
	sep := "{"
	for _, k := range slices.Sorted(maps.Keys(values)) {
		h.raw(sep)
		h.text([]byte(k))
		h.raw(":")
		h.text([]byte(values[k]))
		sep = ","
	}
	h.raw("}")
}
