package ggufview

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Gen makes models for tests and benchmarks: the keys, names and shapes of a
// llama model, with pseudo-random finite weights that depend on nothing but
// these fields. Zero fields get defaults.
type Gen struct {
	Bytes   int64  // about the size of the file; 0: one row a tensor, or no tensors if Tensors is 0 too
	Tensors int    // exactly so many; 0: 9 a layer and 3 more
	Tokens  int    // entries of the vocabulary, at least 259; default 512, 32000 from 256 MiB on
	Layers  int    // default 2, 32 from 256 MiB on; set by Tensors if that is given
	Type    Type   // of the matrices: one that genScales has, default F32
	Seed    uint64 // other seed, other weights
}

// genScales is the types that Gen can fill: the byte offsets, in a block, of
// float16 numbers that have to stay finite. Plain floats are treated apart.
var genScales = map[Type][]int{
	F32: nil, F16: nil, BF16: nil,
	Q4_0: {0}, Q4_1: {0, 2}, Q5_0: {0}, Q5_1: {0, 2}, Q8_0: {0},
	10: {80, 82}, 11: {108}, Q4_K: {0, 2}, 13: {0, 2}, Q6_K: {208}, // Q2_K to Q6_K
}

// genMasks is, for the plain floats, what to clear and to set in 8 random bytes
// so that every number has a magnitude of about 1/100.
var genMasks = map[Type][2]uint64{
	F32:  {0x80ffffff80ffffff, 0x3c0000003c000000},
	F16:  {0x87ff87ff87ff87ff, 0x2000200020002000},
	BF16: {0x80ff80ff80ff80ff, 0x3c003c003c003c00},
}

// WriteTo writes the model and returns its size in bytes.
func (g Gen) WriteTo(w io.Writer) (int64, error) {
	if _, ok := genScales[g.Type]; !ok {
		return 0, fmt.Errorf("generate a model of %v: not supported", g.Type)
	}
	g = g.withDefaults()
	embd, ff := g.dims()
	s := Spec{KV: g.metadata(embd, ff)}
	for i, t := range g.tensors(embd, ff) {
		t.Fill = genFill(t.Type, g.Seed+uint64(i+1)<<40)
		s.Tensors = append(s.Tensors, t)
	}
	return s.WriteTo(w)
}

func (g Gen) withDefaults() Gen {
	big := g.Bytes >= 256<<20
	if g.Tokens == 0 {
		g.Tokens = 512
		if big {
			g.Tokens = 32000
		}
	}
	g.Tokens = max(g.Tokens, 259)
	switch {
	case g.Tensors > 0:
		g.Layers = max(g.Tensors-3+8, 0) / 9
	case g.Layers == 0 && big:
		g.Layers = 32
	case g.Layers == 0:
		g.Layers = 2
	}
	return g
}

// dims chooses the widths of the embedding and of the feed-forward part that
// come closest to Bytes from below. A layer has 4 matrices of embd*embd and 3
// of embd*ff; the vocabulary has 2 of embd*tokens.
func (g Gen) dims() (embd, ff int64) {
	step := max(64, int64(g.Type.BlockElements()))
	values := g.Bytes / int64(g.Type.BlockBytes()) * int64(g.Type.BlockElements())
	layers, tokens := int64(max(g.Layers, 1)), int64(g.Tokens)
	size := func(e, f int64) int64 { return layers*(4*e*e+3*e*f) + 2*tokens*e }
	for embd = step; size(embd+step, 5*(embd+step)/2) <= values; {
		embd += step
	}
	step = max(32, int64(g.Type.BlockElements()))
	ff = (values - size(embd, 0)) / (3 * embd * layers) / step * step
	return embd, max(ff, step)
}

func (g Gen) metadata(embd, ff int64) []SpecKV {
	heads := uint32(embd / 64)
	kv := []SpecKV{
		{"general.architecture", "llama"},
		{"general.name", fmt.Sprintf("generated %v seed %d", g.Type, g.Seed)},
		{"general.quantization_version", uint32(2)},
		{"llama.vocab_size", uint32(g.Tokens)},
		{"llama.context_length", uint32(2048)},
		{"llama.embedding_length", uint32(embd)},
		{"llama.block_count", uint32(g.Layers)},
		{"llama.feed_forward_length", uint32(ff)},
		{"llama.attention.head_count", heads},
		{"llama.attention.head_count_kv", heads},
		{"llama.attention.layer_norm_rms_epsilon", float32(1e-5)},
		{"llama.rope.dimension_count", uint32(64)},
	}
	return append(kv, g.vocabulary()...)
}

// vocabulary is a SentencePiece one: three control tokens, a token per byte,
// and words, all different.
func (g Gen) vocabulary() []SpecKV {
	tokens, scores, types := make([]string, g.Tokens), make([]float32, g.Tokens), make([]int32, g.Tokens)
	for i := range tokens {
		tokens[i], scores[i], types[i] = genWord(i-259), -float32(i), 1 // normal
		if i < 259 {
			tokens[i], scores[i], types[i] = fmt.Sprintf("<0x%02X>", i-3), 0, 6 // byte
		}
	}
	copy(tokens, []string{"<unk>", "<s>", "</s>"})
	copy(types, []int32{2, 3, 3}) // unknown, control
	return []SpecKV{
		{"tokenizer.ggml.model", "llama"},
		{"tokenizer.ggml.tokens", tokens},
		{"tokenizer.ggml.scores", scores},
		{"tokenizer.ggml.token_type", types},
		{"tokenizer.ggml.bos_token_id", uint32(1)},
		{"tokenizer.ggml.eos_token_id", uint32(2)},
	}
}

// genWord is a different word for each i: letters first, then longer ones, some
// with the mark that begins a word.
func genWord(i int) string {
	const letters = "etaoinshrdlucmfwypvbgkqjxz"
	word := ""
	for n := i; n >= 0; n = n/26 - 1 {
		word += letters[n%26 : n%26+1]
	}
	if i%3 == 2 {
		return "\u2581" + word
	}
	return word
}

// tensors is the table in llama.cpp's order. With Tensors set the last layer
// can be incomplete.
func (g Gen) tensors(embd, ff int64) []SpecTensor {
	if g.Bytes == 0 && g.Tensors == 0 {
		return nil
	}
	matrix := func(name string, in, out int64) SpecTensor {
		return SpecTensor{Name: name + ".weight", Type: g.Type, NE: []int64{in, out}}
	}
	norm := func(name string) SpecTensor {
		return SpecTensor{Name: name + ".weight", Type: F32, NE: []int64{embd}}
	}
	all := []SpecTensor{matrix("token_embd", embd, int64(g.Tokens)), matrix("output", embd, int64(g.Tokens)), norm("output_norm")}
	for i := range g.Layers {
		blk := fmt.Sprintf("blk.%d.", i)
		all = append(all, norm(blk+"attn_norm"), matrix(blk+"attn_q", embd, embd), matrix(blk+"attn_k", embd, embd),
			matrix(blk+"attn_v", embd, embd), matrix(blk+"attn_output", embd, embd), norm(blk+"ffn_norm"),
			matrix(blk+"ffn_gate", embd, ff), matrix(blk+"ffn_up", embd, ff), matrix(blk+"ffn_down", ff, embd))
	}
	if g.Tensors > 0 {
		all = all[:min(g.Tensors, len(all))]
	}
	for i := range all {
		if g.Bytes == 0 {
			all[i].NE = all[i].NE[:1]
		}
	}
	return all
}

// genFill returns a Fill of pseudo-random finite numbers. Each 8 bytes are a
// hash of their position (SplitMix64): no state, and fast.
func genFill(t Type, seed uint64) func(p []byte, off int64) {
	mask, plain := genMasks[t]
	if !plain {
		mask = [2]uint64{^uint64(0), 0}
	}
	return func(p []byte, off int64) {
		genRandom(p, seed+uint64(off), mask[0], mask[1])
		size := t.BlockBytes()
		for _, at := range genScales[t] {
			for i := at; i+1 < len(p); i += size {
				d := binary.LittleEndian.Uint16(p[i:])
				binary.LittleEndian.PutUint16(p[i:], d&0x83ff|0x0c00) // about 2^-12
			}
		}
	}
}

// genRandom fills p; the number of 8 bytes at p[i] is a hash of at+i.
func genRandom(p []byte, at, keep, set uint64) {
	for i := 0; i < len(p); i += 8 {
		z := (at + uint64(i)) * 0x9e3779b97f4a7c15
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		z = (z^z>>31)&keep | set
		if len(p)-i >= 8 {
			binary.LittleEndian.PutUint64(p[i:], z)
			continue
		}
		for j := range p[i:] {
			p[i+j] = byte(z >> (8 * j))
		}
	}
}
