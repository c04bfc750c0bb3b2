package tree

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"

	"vbootfs/ggufview"
	"vbootfs/vectorboot"
)

var update = flag.Bool("update", false, "write the golden files anew")

// sample is a little model with a tensor of each kind that views treat apart.
func sample() ggufview.Spec {
	const q8 = ggufview.Q8_0
	blocks := noise(3 * 2 * q8.BlockBytes())
	for i := 1; i < len(blocks); i += q8.BlockBytes() {
		blocks[i-1], blocks[i] = blocks[i-1]&0x83|0x0c, blocks[i]&0x83|0x0c // scales stay finite in both byte orders
	}
	return ggufview.Spec{
		KV: []ggufview.SpecKV{
			{Key: "general.architecture", Value: "llama"},
			{Key: "general.name", Value: "A\x1b[31mmodel"},
			{Key: "general.file_type", Value: uint32(7)},
			{Key: "llama.context_length", Value: uint32(131072)},
			{Key: "llama.embedding_length", Value: uint32(64)},
			{Key: "llama.feed_forward_length", Value: uint32(256)},
			{Key: "llama.block_count", Value: uint32(3)},
			{Key: "llama.attention.head_count", Value: uint32(8)},
			{Key: "llama.attention.head_count_kv", Value: []int32{2, 4, 0}},
			{Key: "tokenizer.ggml.model", Value: "gpt2"},
			{Key: "tokenizer.ggml.tokens", Value: []string{"a", "\"b\"", "\n"}},
			{Key: "tokenizer.chat_template", Value: "{% for m in messages %}\n{{ m }}{% endfor %}"},
			{Key: "test.float", Value: float32(0.1)},
			{Key: "test.bool", Value: true},
			{Key: "test.floats", Value: []float64{1, math.Inf(-1), math.NaN()}},
			{Key: "test.many", Value: make([]uint16, longArray+1)},
		},
		Tensors: []ggufview.SpecTensor{
			{Name: "q", Type: q8, NE: []int64{64, 3}, Data: blocks},
			{Name: "norm", Type: ggufview.F32, NE: []int64{2}, Data: []byte{0, 0, 128, 63, 0, 0, 0, 192}},
			{Name: "half", Type: ggufview.BF16, NE: []int64{2}, Data: []byte{128, 63, 128, 63}},
			{Name: "scalar", Type: ggufview.I16, Data: []byte{1, 2}},
			{Name: "none", Type: ggufview.F16, NE: []int64{0, 4}, Data: []byte{}},
			{Name: "q8_1", Type: 9, NE: []int64{32}, Data: noise(36)}, // ggml cannot dequantise it
		},
	}
}

func sampled(t *testing.T) (*vectorboot.Runtime, ggufview.Spec) {
	rt, s := start(t), sample()
	load(t, rt, "s.gguf", built(t, s))
	return rt, s
}

func TestMetadataFiles(t *testing.T) {
	rt, _ := sampled(t)
	for _, c := range []struct{ key, typ, want string }{
		{"general.architecture", "string", "llama"},
		{"general.name", "string", "A\x1b[31mmodel"},
		{"general.file_type", "uint32", "7\n"},
		{"test.float", "float32", "0.10000000149011612\n"},
		{"test.bool", "bool", "true\n"},
		{"test.floats", "array[float64]", `[1,"-Infinity","NaN"]` + "\n"},
		{"tokenizer.ggml.tokens", "array[string]", `["a","\"b\"","\n"]` + "\n"},
		{"llama.attention.head_count_kv", "array[int32]", "[2,4,0]\n"},
	} {
		name := "models/s.gguf/metadata/" + c.key
		if got := text(t, rt, name); got != c.want {
			t.Errorf("%s is %q, want %q", c.key, got, c.want)
		}
		if got := xattrs(t, rt, name)["user.gguf.type"]; got != c.typ {
			t.Errorf("%s has the type %q, want %q", c.key, got, c.typ)
		}
	}
}

func xattrs(t *testing.T, rt *vectorboot.Runtime, name string) map[string]string {
	t.Helper()
	e, err := FS{rt}.walk("xattr", name)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	got := map[string]string{}
	for _, x := range e.Xattr(e.At) {
		got[x.Name] = x.Value
	}
	return got
}

func TestTensorFiles(t *testing.T) {
	rt, s := sampled(t)
	g := rt.Acquire("s.gguf")
	defer g.Release()
	for i, c := range []struct{ typ, shape, dtype, npyShape string }{
		{"Q8_0", "3 64", "|u1", "(3, 68)"},
		{"F32", "2", "<f4", "(2, )"},
		{"BF16", "2", "<u2", "(2, )"},
		{"I16", "", "<i2", "()"},
		{"F16", "4 0", "<f2", "(4, 0)"},
		{"Q8_1", "32", "|u1", "(36, )"},
	} {
		at := g.Info.TensorAt(i)
		tensor := &at
		dir := "models/s.gguf/tensors/" + tensor.Name + "/"
		for name, want := range map[string]string{
			"data": string(s.Tensors[i].Data), "type": c.typ + "\n", "shape": c.shape + "\n",
			"offset": fmt.Sprintln(tensor.Offset), "nbytes": fmt.Sprintln(tensor.Bytes),
		} {
			if got := text(t, rt, dir+name); got != want {
				t.Errorf("%s%s is %q, want %q", dir, name, got, want)
			}
		}
		head, body := npy(t, text(t, rt, dir+"raw.npy"))
		if body != string(s.Tensors[i].Data) || !strings.Contains(head, "'"+c.dtype+"'") || !strings.Contains(head, "'shape': "+c.npyShape+",") {
			t.Errorf("%sraw.npy begins with %s", dir, head)
		}
		if got := xattrs(t, rt, dir[:len(dir)-1]); got["user.gguf.shape"] != c.shape || got["user.gguf.nbytes"] != fmt.Sprint(tensor.Bytes) || len(got) != 4 {
			t.Errorf("%s has the attributes %v", dir, got)
		}
		values(t, rt, dir, tensor, s.Tensors[i].Data)
	}
}

// values checks the views of the values, which exist only where there are some.
func values(t *testing.T, rt *vectorboot.Runtime, dir string, tensor *ggufview.Tensor, data []byte) {
	want := make([]float32, tensor.Elements)
	if err := ggufview.Dequantize(tensor.Type, false, want, data); err != nil {
		for _, name := range []string{"f32", "f32.npy", "stats.json"} {
			if _, err := fs.Stat(FS{rt}, dir+name); err == nil {
				t.Errorf("%s%s exists", dir, name)
			}
		}
		return
	}
	var f32 bytes.Buffer
	if err := binary.Write(&f32, binary.LittleEndian, want); err != nil {
		t.Fatal(err)
	}
	if text(t, rt, dir+"f32") != f32.String() {
		t.Errorf("%sf32 has other values", dir)
	}
	if head, body := npy(t, text(t, rt, dir+"f32.npy")); body != f32.String() || !strings.Contains(head, "'<f4'") {
		t.Errorf("%sf32.npy has other values or the header %s", dir, head)
	}
	var stats struct{ Count int64 }
	b := text(t, rt, dir+"stats.json")
	if err := json.Unmarshal([]byte(b), &stats); err != nil || stats.Count != tensor.Elements || len(b) != statsBytes {
		t.Errorf("%sstats.json has %d bytes: %v %v", dir, len(b), stats, err)
	}
}

// npy splits an array file.
func npy(t *testing.T, b string) (head, body string) {
	t.Helper()
	if !strings.HasPrefix(b, "\x93NUMPY\x01\x00") {
		t.Fatalf("no array file: %.20q", b)
	}
	n := 10 + int(binary.LittleEndian.Uint16([]byte(b[8:10])))
	return b[10:n], b[n:]
}

// The longest statistics fit into the size that stat shows.
func TestStatsFit(t *testing.T) {
	s := ggufview.Stats{Count: math.MaxInt64, Min: -math.MaxFloat64, Max: -math.MaxFloat64, Mean: -math.MaxFloat64, Std: math.SmallestNonzeroFloat64,
		Zeros: math.MaxInt64, Lo: -math.MaxFloat64, Hi: -math.MaxFloat64}
	for i := range s.Hist {
		s.Hist[i] = math.MaxInt64
	}
	if b, err := json.Marshal(&s); err != nil || len(b) >= statsBytes {
		t.Errorf("%d bytes: %v", len(b), err)
	}
}

func TestSafetensors(t *testing.T) {
	rt, s := sampled(t)
	for name, want := range map[string]map[string]string{
		"model.safetensors":      {"q": "F32", "norm": "F32", "half": "BF16", "scalar": "I16", "none": "F16", "q8_1": "U8"},
		"model.bf16.safetensors": {"q": "BF16", "norm": "F32", "half": "BF16", "scalar": "I16", "none": "F16", "q8_1": "U8"},
	} {
		b := []byte(text(t, rt, "models/s.gguf/"+name))
		n := binary.LittleEndian.Uint64(b)
		var head map[string]struct {
			Dtype   string
			Offsets [2]int `json:"data_offsets"`
		}
		meta := struct {
			M map[string]string `json:"__metadata__"`
		}{}
		if err := json.Unmarshal(b[8:8+n], &meta); err != nil || meta.M["test.float"] != "0.10000000149011612" || meta.M["tokenizer.chat_template"] != s.KV[11].Value {
			t.Errorf("%s: %v %v", name, err, meta)
		}
		if _, long := meta.M["test.many"]; long {
			t.Errorf("%s carries a vocabulary", name)
		}
		_ = json.Unmarshal(b[8:8+n], &head) // __metadata__ does not fit; the rest is there
		for tensor, dtype := range want {
			if head[tensor].Dtype != dtype {
				t.Errorf("%s: %s is %s, want %s", name, tensor, head[tensor].Dtype, dtype)
			}
		}
		at := head["half"].Offsets
		if got := b[8+int(n)+at[0] : 8+int(n)+at[1]]; !bytes.Equal(got, s.Tensors[2].Data) {
			t.Errorf("%s: half is % x", name, got)
		}
	}
}

func TestManifest(t *testing.T) {
	rt, s := sampled(t)
	var want bytes.Buffer
	var all []byte
	line := func(name string, b []byte) {
		fmt.Fprintf(&want, "%-8s  %016x  %s\n%-8s  %x  %s\n", "xxh64", xxhash.Sum64(b), name, "sha256", sha256.Sum256(b), name)
	}
	for _, tensor := range s.Tensors {
		line("model.gguf:"+tensor.Name, tensor.Data)
		all = append(all, tensor.Data...)
	}
	line("model.gguf", all)
	if got := text(t, rt, "models/s.gguf/hashes.manifest"); got != want.String() {
		t.Errorf("got\n%swant\n%s", got, want.String())
	}
	if got := text(t, rt, "models/s.gguf/sha256"); got != fmt.Sprintf("%x\n", sha256.Sum256(built(t, s))) {
		t.Errorf("sha256 is %s", got)
	}
}

func TestSummary(t *testing.T) {
	rt, _ := sampled(t)
	load(t, rt, "adapter.gguf", adapter(t))
	got := text(t, rt, "models/s.gguf/summary.txt") + "\n---\n\n" + text(t, rt, "models/adapter.gguf/summary.txt")
	const golden = "testdata/summary.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s", got)
	}
}

func TestPictures(t *testing.T) {
	rt, _ := sampled(t)
	for name, want := range map[string]string{"map.svg": "Q8_0: 1 tensor", "report.html": "<figure>"} {
		got := text(t, rt, "models/s.gguf/"+name)
		info, err := fs.Stat(FS{rt}, "models/s.gguf/"+name)
		if err != nil || info.Size() != int64(len(got)) || !strings.Contains(got, want) || !strings.Contains(got, "A\uFFFD[31mmodel") {
			t.Errorf("%s has %d bytes: %v", name, len(got), err)
		}
	}
	g := rt.Acquire("s.gguf")
	defer g.Release()
	for _, tensor := range g.Info.ReportTensors() {
		if v, _ := g.Once(tensorStats{tensor.Index}, func() (any, error) { return nil, nil }); v == nil {
			t.Errorf("the report did not keep the statistics of %s", tensor.Name)
		}
	}
}
