package ggufview

import (
	"bytes"
	"encoding/json"
	"math"
	"testing"
	"unicode/utf8"
)

// useAll calls everything that reads a File and checks what must always hold.
func useAll(t testing.TB, f *File) {
	t.Helper()
	for i, tn := range f.Tensors() {
		if tn.Offset < f.DataOffset || tn.Bytes < 0 || tn.Offset > f.Size-tn.Bytes || tn.Offset%f.Alignment != f.DataOffset%f.Alignment {
			t.Errorf("tensor %q at %d+%d of %d", tn.Name, tn.Offset, tn.Bytes, f.Size)
		}
		if got, ok := f.Tensor(tn.Name); !ok || *got != tn || tn.Index != i || len(tn.Shape()) != tn.Dims {
			t.Errorf("tensor %q is not found by its name", tn.Name)
		}
	}
	for i := range f.KVs {
		kv := &f.KVs[i]
		if got, ok := f.Find(kv.Key); !ok || got != kv {
			t.Errorf("key %q is not found", kv.Key)
		}
		checkValue(t, f, kv)
	}
	checkJSON(t, "metadata", f.AppendMetadataJSON(nil), len(f.KVs))
	checkJSON(t, "tensors", f.AppendTensorsJSON(nil), f.NumTensors())
	if tsv := f.AppendLayoutTSV(nil); bytes.Count(tsv, []byte("\n")) != f.NumTensors()+1 || bytes.Count(tsv, []byte("\t")) != 4*f.NumTensors()+4 {
		t.Errorf("layout.tsv: %q", tsv)
	}
	useValues(f)
}

func checkValue(t testing.TB, f *File, kv *KV) {
	t.Helper()
	value := f.AppendValueJSON(nil, kv)
	if n := f.ValueJSONLen(kv); n != int64(len(value)) {
		t.Errorf("key %q: JSON of %d bytes, measured %d", kv.Key, len(value), n)
	}
	if text := f.ValueText(kv); f.ValueTextLen(kv) != int64(len(text)) {
		t.Errorf("key %q: text of %d bytes, measured %d", kv.Key, len(text), f.ValueTextLen(kv))
	}
	if !json.Valid(value) || !utf8.Valid(value) {
		t.Errorf("key %q: not JSON: %.200q", kv.Key, value)
	}
}

func checkJSON(t testing.TB, what string, b []byte, lines int) {
	t.Helper()
	if !json.Valid(b) || !utf8.Valid(b) {
		t.Errorf("%s: not JSON: %.200q", what, b)
	}
	if n := bytes.Count(b, []byte("\n")); n != lines+1 && n != lines+2 {
		t.Errorf("%s: %d lines for %d entries", what, n, lines)
	}
}

// useValues calls every accessor, for the sake of those that might panic.
func useValues(f *File) {
	f.Architecture()
	f.ByteOrder()
	for i := range f.KVs {
		kv := &f.KVs[i]
		f.Text(kv)
		f.Str(kv.Key)
		f.Uint(kv.Key)
		f.Float(kv.Key)
		f.ValueText(kv)
		for range f.Strings(kv) {
		}
	}
	f.AppendMetadataJSON(nil)
}

// FuzzParse: no input panics, an accepted one keeps all promises, and Open and
// any window of it agree.
func FuzzParse(f *testing.F) {
	seed := func(_ string, b []byte) { f.Add(b) }
	corpus(f, "testdata", "malformed/*.gguf", seed)
	f.Add(mustBytes(f, sample(false)))
	f.Add(mustBytes(f, sample(true)))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := Parse(b, int64(len(b)))
		opened, openErr := Open(bytes.NewReader(b), int64(len(b)))
		if (err == nil) != (openErr == nil) {
			t.Fatalf("Parse: %v, Open: %v", err, openErr)
		}
		if _, err := Parse(b[:len(b)/2], math.MaxInt64); err == nil && len(b) < 24 {
			t.Fatal("accepted less than 24 bytes")
		}
		if err != nil {
			checkRefusal(t, "input", b, err)
			return
		}
		useAll(t, file)
		useAll(t, opened)
	})
}
