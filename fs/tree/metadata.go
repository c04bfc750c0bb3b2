package tree

import (
	"context"

	"vbootfs/ggufview"
)

func (at At) keyNames() *names {
	kvs := at.Gen.Info.KVs
	return namesOf(at.Gen, keyNames{}, len(kvs), func(i int) string { return kvs[i].Key })
}

func listKeys(at At) []string { return at.keyNames().list }

func findKey(at At, name string) (*Row, At, bool) {
	f := at.Gen.Info
	if i, ok := at.keyNames().odd[name]; ok {
		at.KV = &f.KVs[i]
		return keyRow, at, true
	}
	kv, ok := f.Find(name)
	at.KV = kv
	return keyRow, at, ok && plain(name)
}

// dataValue is the value of a key. Strings stay where they are in the file; the
// text of an array is measured once and exists only while somebody reads it.
func dataValue(at At) (ggufview.View, error) {
	f, kv := at.Gen.Info, at.KV
	if kv.Type != ggufview.ValueArray {
		return ggufview.Bytes(f.ValueText(kv)), nil
	}
	size, err := at.Gen.Once(valueSize{kv}, func() (any, error) { return f.ValueTextLen(kv), nil })
	if err != nil {
		return nil, err
	}
	return newLazy(at.Gen, size.(int64), func(context.Context) (ggufview.View, error) {
		return ggufview.Bytes(f.ValueText(kv)), nil
	}), nil
}

func valueType(kv *ggufview.KV) string {
	if kv.Type == ggufview.ValueArray {
		return "array[" + kv.Elem.String() + "]"
	}
	return kv.Type.String()
}

func keyXattrs(at At) []Xattr { return []Xattr{{"user.gguf.type", valueType(at.KV)}} }

type metadataSize struct{} // key of Generation.Once

// dataMetadata is metadata.json, which exists only while somebody reads it.
func dataMetadata(at At) (ggufview.View, error) {
	f := at.Gen.Info
	size, err := at.Gen.Once(metadataSize{}, func() (any, error) { return f.MetadataJSONLen(), nil })
	if err != nil {
		return nil, err
	}
	return newLazy(at.Gen, size.(int64), func(context.Context) (ggufview.View, error) {
		return ggufview.Bytes(f.AppendMetadataJSON(make([]byte, 0, size.(int64)))), nil
	}), nil
}

func showSummary(at At) ([]byte, error) { return at.Gen.Info.AppendSummary(nil), nil }

// longArray is the number of elements from which on an array is left out of the
// metadata of safetensors: readers of that format load its header as a whole.
const longArray = 1 << 10

// safetensorsMeta is every key as text, but for vocabularies.
func safetensorsMeta(f *ggufview.File) map[string]string {
	meta := map[string]string{}
	for i := range f.KVs {
		kv := &f.KVs[i]
		if kv.Count > longArray {
			continue
		}
		text := f.ValueText(kv)
		if kv.Type != ggufview.ValueString {
			text = text[:len(text)-1]
		}
		meta[kv.Key] = string(text)
	}
	return meta
}

// safetensors is the whole model; quantised tensors become quantAs.
func (at At) safetensors(quantAs ggufview.Type) (ggufview.View, error) {
	g, f := at.Gen, at.Gen.Info
	tensors := make([]ggufview.TensorDesc, f.NumTensors())
	for i, t := range f.Tensors() {
		tensors[i] = descOf(f, &t)
	}
	raw := func(i int) ggufview.View {
		t := f.TensorAt(i)
		return rawOf(g, &t)
	}
	return ggufview.Safetensors(safetensorsMeta(f), tensors, raw, quantAs)
}

// safetensorsSize is its size, or why there can be none; found once.
type safetensorsSize struct {
	bytes int64
	err   error
}

func (at At) safetensorsSize(quantAs ggufview.Type) safetensorsSize {
	type key struct{ ggufview.Type }
	v, _ := at.Gen.Once(key{quantAs}, func() (any, error) {
		f := at.Gen.Info
		desc := func(i int) ggufview.TensorDesc {
			t := f.TensorAt(i)
			return descOf(f, &t)
		}
		n, err := ggufview.SafetensorsSize(safetensorsMeta(f), f.NumTensors(), desc, quantAs)
		return safetensorsSize{n, err}, nil
	})
	return v.(safetensorsSize)
}

// dataSafetensors is made anew for each reader: the headers of a large model are
// not worth keeping.
func dataSafetensors(quantAs ggufview.Type) func(At) (ggufview.View, error) {
	return func(at At) (ggufview.View, error) {
		s := at.safetensorsSize(quantAs)
		return newLazy(at.Gen, s.bytes, func(context.Context) (ggufview.View, error) { return at.safetensors(quantAs) }), s.err
	}
}

// fitsSafetensors: names that the format can tell apart.
func fitsSafetensors(at At) bool { return at.safetensorsSize(ggufview.F32).err == nil }
