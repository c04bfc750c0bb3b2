package ggufview

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// KeyEdit is a change of one key. A nil Value removes the key; a key that the
// file has not is added at the end.
type KeyEdit struct {
	Key   string
	Value any // as in SpecKV: uint8 ... float64, bool, string, or a slice of these
}

// Rewrite returns a new header for the file, padded up to its tensor data, with
// the edits applied. All else keeps its bytes and its order, and offsets of
// tensors, being relative to the data, stay right. general.alignment cannot
// change, since the data is laid out by it.
func (f *File) Rewrite(edits []KeyEdit) ([]byte, error) {
	e := encoder{order: binary.LittleEndian}
	if f.BigEndian {
		e.order = binary.BigEndian
	}
	todo := map[string]*KeyEdit{}
	for i := range edits {
		if edits[i].Key == "general.alignment" || edits[i].Key == "" {
			return nil, fmt.Errorf("key %q cannot be changed", edits[i].Key)
		}
		todo[edits[i].Key] = &edits[i]
	}
	e.b = append(e.b, f.b[:24]...)
	count, at := uint64(0), int64(24)
	for i := range f.KVs {
		kv := &f.KVs[i]
		ed := todo[kv.Key]
		delete(todo, kv.Key)
		switch {
		case ed == nil:
			e.b = append(e.b, f.b[at:kv.end]...)
			count++
		case ed.Value != nil:
			if err := e.pair(ed); err != nil {
				return nil, err
			}
			count++
		}
		at = kv.end
	}
	for i := range edits {
		if ed := &edits[i]; todo[ed.Key] == ed && ed.Value != nil {
			if err := e.pair(ed); err != nil {
				return nil, err
			}
			count++
		}
	}
	e.order.(binary.ByteOrder).PutUint64(e.b[16:], count)
	e.b = append(e.b, f.b[at:f.HeaderBytes]...)
	if f.NumTensors() > 0 {
		e.b = append(e.b, make([]byte, padding(int64(len(e.b)), f.Alignment))...)
	}
	return e.b, nil
}

func (e *encoder) pair(ed *KeyEdit) error {
	e.text(ed.Key)
	if err := e.value(ed.Value); err != nil {
		return fmt.Errorf("key %q: %w", ed.Key, err)
	}
	return nil
}

// TypeName is how a key's type is written: "uint32", "array[string]".
func (kv *KV) TypeName() string {
	if kv.Type == ValueArray {
		return "array[" + kv.Elem.String() + "]"
	}
	return kv.Type.String()
}

// ParseValue reads a value of a type as files show it: strings as they are,
// numbers and bools as one word, arrays as JSON.
func ParseValue(typeName, text string) (any, error) {
	if elem, ok := strings.CutPrefix(typeName, "array["); ok {
		return parseArray(strings.TrimSuffix(elem, "]"), text)
	}
	word := strings.TrimSpace(text)
	switch typeName {
	case "string":
		return text, nil
	case "bool":
		return strconv.ParseBool(word)
	case "float32":
		v, err := parseFloat(word, 32)
		return float32(v), err
	case "float64":
		return parseFloat(word, 64)
	}
	return parseInteger(typeName, word)
}

// parseFloat also takes a float32 written as the double that equals it.
func parseFloat(word string, bits int) (float64, error) {
	v, err := strconv.ParseFloat(word, 64)
	if err == nil && bits == 32 && !math.IsInf(v, 0) && math.IsInf(float64(float32(v)), 0) {
		err = fmt.Errorf("%s is too large for float32", word)
	}
	return v, err
}

func parseInteger(typeName, word string) (any, error) {
	switch typeName {
	case "uint8":
		v, err := strconv.ParseUint(word, 10, 8)
		return uint8(v), err
	case "uint16":
		v, err := strconv.ParseUint(word, 10, 16)
		return uint16(v), err
	case "uint32":
		v, err := strconv.ParseUint(word, 10, 32)
		return uint32(v), err
	case "uint64":
		return strconv.ParseUint(word, 10, 64)
	case "int8":
		v, err := strconv.ParseInt(word, 10, 8)
		return int8(v), err
	case "int16":
		v, err := strconv.ParseInt(word, 10, 16)
		return int16(v), err
	case "int32":
		v, err := strconv.ParseInt(word, 10, 32)
		return int32(v), err
	case "int64":
		return strconv.ParseInt(word, 10, 64)
	}
	return nil, fmt.Errorf("%q is not a value type", typeName)
}

func parseArray(elem, text string) (any, error) {
	switch elem {
	case "string":
		return jsonArray[string](text)
	case "bool":
		return jsonArray[bool](text)
	case "uint8":
		return parseBytes(text)
	case "int8":
		return jsonArray[int8](text)
	case "uint16":
		return jsonArray[uint16](text)
	case "int16":
		return jsonArray[int16](text)
	case "uint32":
		return jsonArray[uint32](text)
	case "int32":
		return jsonArray[int32](text)
	case "uint64":
		return jsonArray[uint64](text)
	case "int64":
		return jsonArray[int64](text)
	case "float32":
		return jsonArray[float32](text)
	case "float64":
		return jsonArray[float64](text)
	}
	return nil, fmt.Errorf("%q is not an element type", elem)
}

// parseBytes reads numbers, where encoding/json would want base64.
func parseBytes(text string) (any, error) {
	var v []uint16
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		return nil, err
	}
	out := make([]uint8, len(v))
	for i, x := range v {
		if out[i] = uint8(x); uint16(out[i]) != x {
			return nil, fmt.Errorf("%d is no uint8", x)
		}
	}
	return out, nil
}

func jsonArray[T any](text string) (any, error) {
	v := []T{}
	err := json.Unmarshal([]byte(text), &v)
	return v, err
}

// FormatValue writes a value as files show it: what ParseValue reads.
func FormatValue(v any) ([]byte, error) {
	b, err := (&Spec{KV: []SpecKV{{Key: "v", Value: v}}}).Bytes()
	if err != nil {
		return nil, err
	}
	f, err := Parse(b, int64(len(b)))
	if err != nil {
		return nil, err
	}
	return f.ValueText(&f.KVs[0]), nil
}
