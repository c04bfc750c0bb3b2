package ggufview

import (
	"bytes"
	"io"
	"testing"
)

// BenchmarkParse measures headers from memory. BytesPerOp is their size.
func BenchmarkParse(b *testing.B) {
	for _, c := range []struct {
		name string
		gen  Gen
	}{
		{"150k-strings", Gen{Tokens: 150_000}},
		{"777k-strings", Gen{Tokens: 777_000}},
		{"10k-tensors", Gen{Tensors: 10_000}},
		{"100k-tensors", Gen{Tensors: 100_000}},
	} {
		b.Run(c.name, func(b *testing.B) {
			data := generate(b, c.gen)
			b.SetBytes(mustParse(b, data).HeaderBytes)
			b.ReportAllocs()
			for b.Loop() {
				mustParse(b, data)
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	data := generate(b, Gen{Tokens: 150_000})
	for b.Loop() {
		if _, err := Open(bytes.NewReader(data), int64(len(data))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMetadataJSON(b *testing.B) {
	f := mustParse(b, generate(b, Gen{Tokens: 150_000}))
	dst := f.AppendMetadataJSON(nil)
	b.SetBytes(int64(len(dst)))
	b.Run("append", func(b *testing.B) {
		for b.Loop() {
			dst = f.AppendMetadataJSON(dst[:0])
		}
	})
	b.Run("length", func(b *testing.B) {
		kv, _ := f.Find("tokenizer.ggml.tokens")
		for b.Loop() {
			f.ValueJSONLen(kv)
		}
	})
}

func BenchmarkGen(b *testing.B) {
	for _, t := range []Type{F16, Q4_K} {
		b.Run(t.String(), func(b *testing.B) {
			g := Gen{Bytes: 64 << 20, Type: t}
			b.SetBytes(g.Bytes)
			for b.Loop() {
				if _, err := g.WriteTo(io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
