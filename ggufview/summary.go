package ggufview

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
)

// fileTypes names general.file_type (enum llama_ftype of llama.h). The gaps are
// numbers that llama.cpp took back.
var fileTypes = map[uint64]string{
	0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1",
	10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
	19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
	28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
	40: "Q1_0", 41: "Q2_0",
}

// fileTypeGuessed is the flag that a converter sets which did not choose the type.
const fileTypeGuessed = 1024

// AppendSummary appends a page for people: what the model is, how it is
// quantised, what memory it takes, and its largest tensors.
func (f *File) AppendSummary(dst []byte) []byte {
	var b bytes.Buffer
	s := summary{f: f, arch: f.Architecture(), w: tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)}
	s.model()
	s.shape()
	s.tokenizer()
	s.file()
	s.w.Flush() // b takes everything
	s.types(&b)
	s.memory(&b)
	s.largest(&b)
	return append(dst, b.Bytes()...)
}

type summary struct {
	f    *File
	arch string
	w    *tabwriter.Writer
}

// line writes a label and what there is to say; nothing if that is nothing.
func (s *summary) line(label string, parts ...string) {
	if text := strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), ", "); text != "" {
		fmt.Fprintf(s.w, "%s\t%s\n", label, text)
	}
}

// text is a string value fit for a line.
func (s *summary) text(key string) string {
	v, _ := s.f.Str(key)
	return oneLine(v, 60)
}

// count is a number of the architecture with a word for it, "" if there is none.
func (s *summary) count(key, format string) string {
	n, ok := s.number(key)
	if !ok {
		return ""
	}
	return fmt.Sprintf(format, grouped(n))
}

// number is an integer of the architecture.
func (s *summary) number(key string) (uint64, bool) { return s.f.Uint(s.arch + "." + key) }

func (s *summary) model() {
	s.line("name", s.text("general.name"), s.text("general.size_label"))
	s.line("architecture", oneLine(s.arch, 60), s.text("general.type"))
	s.line("license", s.text("general.license"))
	if n := s.f.parameters(); n >= 1000 {
		s.line("parameters", fmt.Sprintf("%s (%s)", short(n), grouped(n)))
	} else if n > 0 {
		s.line("parameters", grouped(n))
	}
	if t, ok := s.f.Uint("general.file_type"); ok {
		name, known := fileTypes[t&^fileTypeGuessed]
		if !known {
			name = "unknown number " + strconv.FormatUint(t, 10)
		}
		if t&fileTypeGuessed != 0 {
			name += " (guessed by the converter)"
		}
		s.line("file type", name)
	}
}

func (f *File) parameters() (n uint64) {
	for _, t := range f.Tensors() {
		n += uint64(t.Elements)
	}
	return n
}

func (s *summary) shape() {
	s.line("context", s.count("context_length", "%s tokens"), s.count("attention.sliding_window", "window of %s in some layers"))
	s.line("layers", s.count("block_count", "%s"))
	s.line("embedding", s.count("embedding_length", "%s"), s.count("feed_forward_length", "feed forward %s"))
	s.line("heads", s.perLayer("attention.head_count", ""), s.perLayer("attention.head_count_kv", " for keys and values"))
	s.line("experts", s.count("expert_count", "%s"), s.count("expert_used_count", "%s used"))
}

// perLayer is a number that may differ between layers.
func (s *summary) perLayer(key, suffix string) string {
	v := s.f.uints(s.arch + "." + key)
	if len(v) == 0 {
		return ""
	}
	lo, hi := slices.Min(v), slices.Max(v)
	if lo == hi {
		return grouped(lo) + suffix
	}
	return fmt.Sprintf("%s to %s%s", grouped(lo), grouped(hi), suffix)
}

// maxLayers is more than any model has (llama.cpp allows 512).
const maxLayers = 1 << 12

// uints is an integer, or the beginning of an array of integers, as numbers that
// are not negative.
func (f *File) uints(key string) (v []uint64) {
	kv, ok := f.Find(key)
	if !ok || kv.Elem.Bytes() == 0 || kv.Elem == ValueFloat32 || kv.Elem == ValueFloat64 || kv.Elem == ValueBool {
		return nil
	}
	size := kv.Elem.Bytes()
	signed := kv.Elem == ValueInt8 || kv.Elem == ValueInt16 || kv.Elem == ValueInt32 || kv.Elem == ValueInt64
	for p := f.elements(kv); len(p) >= size && len(v) < maxLayers; p = p[size:] {
		n := f.bits(p[:size])
		if signed {
			n = uint64(max(0, signExtend(n, size)))
		}
		v = append(v, n)
	}
	return v
}

func (s *summary) tokenizer() {
	tokens, template := "", ""
	if kv, ok := s.f.Find("tokenizer.ggml.tokens"); ok {
		tokens = grouped(uint64(kv.Count)) + " tokens"
	}
	if kv, ok := s.f.Find("tokenizer.chat_template"); ok && kv.Type == ValueString {
		template = fmt.Sprintf("chat template of %s bytes", grouped(uint64(s.f.ValueTextLen(kv))))
	}
	s.line("tokenizer", s.text("tokenizer.ggml.model"), s.text("tokenizer.ggml.pre"), tokens, template)
}

func (s *summary) file() {
	order := ""
	if s.f.BigEndian {
		order = "big-endian"
	}
	s.line("file", size(float64(s.f.Size)), fmt.Sprintf("GGUF %d", s.f.Version), order,
		grouped(uint64(len(s.f.KVs)))+" keys", grouped(uint64(s.f.NumTensors()))+" tensors")
}

// types is the quantisation mix, the type with the most bytes first.
func (s *summary) types(b *bytes.Buffer) {
	rows, total := s.f.mix(), 0.0
	for _, row := range rows {
		total += float64(row.Bytes)
	}
	if len(rows) == 0 {
		return
	}
	const most = 8
	b.WriteString("\nTYPE      TENSORS  PARAMETERS        SIZE   SHARE\n")
	for _, row := range rows[:min(most, len(rows))] {
		fmt.Fprintf(b, "%-8s %8s  %10s  %10s  %5.1f%%\n", row.Type, grouped(row.Tensors), short(row.Elements),
			size(float64(row.Bytes)), 100*float64(row.Bytes)/max(total, 1))
	}
	if more := len(rows) - most; more > 0 {
		fmt.Fprintf(b, "and %d more types\n", more)
	}
}

// kvBytes is what the cache of keys and values takes for one token in float16,
// 0 if the header does not tell or the model keeps none. Per layer it has
// head_count_kv rows of key_length and of value_length numbers; both lengths
// default to embedding_length / head_count, and with latent attention (MLA) only
// the keys are kept. Source: llama.cpp, src/llama-kv-cache.cpp, the tensors
// cache_k and cache_v, and llama_hparams::n_embd_k_gqa.
func (s *summary) kvBytes() float64 {
	layers, _ := s.number("block_count")
	embedding, _ := s.number("embedding_length")
	heads := s.f.uints(s.arch + ".attention.head_count")
	if causal, ok := s.f.Find(s.arch + ".attention.causal"); len(heads) == 0 || ok && causal.Type == ValueBool && string(s.f.ValueText(causal)) == "false\n" {
		return 0
	}
	kv := s.f.uints(s.arch + ".attention.head_count_kv")
	if len(kv) == 0 {
		kv = heads
	}
	length := func(key string) float64 {
		if n, ok := s.number(key); ok {
			return float64(n)
		}
		return float64(embedding) / float64(max(1, slices.Max(heads)))
	}
	rows := float64(kv[0]) * float64(layers)
	if len(kv) > 1 {
		rows = 0
		for _, n := range kv[:min(uint64(len(kv)), layers)] {
			rows += float64(n)
		}
	}
	numbers := length("attention.key_length")
	if _, mla := s.number("attention.key_length_mla"); !mla {
		numbers += length("attention.value_length")
	}
	const float16 = 2
	return rows * numbers * float16
}

// memory estimates what running the model takes. Buffers of the computation come
// on top; they depend on the program and its batch size.
func (s *summary) memory(b *bytes.Buffer) {
	var weights float64
	for _, t := range s.f.Tensors() {
		weights += float64(t.Bytes)
	}
	each := s.kvBytes()
	if weights == 0 || each == 0 {
		return
	}
	most := ""
	if n, _ := s.number("attention.sliding_window"); n > 0 {
		most = "; sliding windows need less"
	}
	fmt.Fprintf(b, "\nMEMORY    weights + KV cache in F16 (%s a token%s)\n", size(each), most)
	full, known := s.number("context_length")
	lengths := []uint64{min(4096, full), full}
	if !known {
		lengths = []uint64{4096}
	}
	for _, n := range slices.Compact(lengths) {
		cache := each * float64(n)
		fmt.Fprintf(b, "%10s  at %s tokens: %s + %s\n", size(weights+cache), grouped(n), size(weights), size(cache))
	}
}

func (s *summary) largest(b *bytes.Buffer) {
	const most = 8
	var byBytes []Tensor
	for _, t := range s.f.Tensors() {
		i, _ := slices.BinarySearchFunc(byBytes, t, func(a, b Tensor) int { return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), -1) })
		if i < most {
			byBytes = slices.Insert(byBytes[:min(len(byBytes), most-1)], i, t)
		}
	}
	if len(byBytes) == 0 {
		return
	}
	b.WriteString("\nLARGEST TENSORS\n")
	for _, t := range byBytes {
		fmt.Fprintf(b, "%10s  %-7s  %-14s  %s\n", size(float64(t.Bytes)), t.Type, t.appendShape(nil, 'x'), oneLine(t.Name, 40))
	}
}

// oneLine makes a text of the file fit for a terminal: nothing but printable
// characters, at most so many.
func oneLine(s string, most int) string {
	runes := []rune(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s[:min(len(s), 4*most+4)]))
	if len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return string(runes)
}

// short is a number of parameters as people say it: 8.03 B.
func short(n uint64) string {
	v, unit := float64(n), 0
	for ; v >= 999.5 && unit < 4; unit++ {
		v /= 1000
	}
	if unit == 0 {
		return strconv.FormatUint(n, 10)
	}
	return fmt.Sprintf("%.3g %c", v, "-KMBT"[unit])
}

// size is a number of bytes in binary units.
func size(v float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	for v >= 1023.95 && len(units) > 1 {
		v, units = v/1024, units[1:]
	}
	if units[0] == "B" {
		return fmt.Sprintf("%.0f B", v)
	}
	return fmt.Sprintf("%.1f %s", v, units[0])
}

// grouped puts commas between thousands.
func grouped(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
