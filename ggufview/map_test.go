package ggufview

import (
	"bytes"
	"encoding/xml"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// pictured is a model with blocks, loose tensors, several types and bytes that
// belong to nothing.
func pictured() *Spec {
	s := &Spec{KV: []SpecKV{{"general.architecture", "llama"}, {"general.name", "A <b>model</b> & more"}}}
	s.Tensors = append(s.Tensors, SpecTensor{Name: "token_embd.weight", Type: Q6_K, NE: []int64{256, 64}})
	for i := range 3 {
		for _, t := range []SpecTensor{{Name: "attn_q.weight", Type: Q4_K, NE: []int64{256, 32}}, {Name: "attn_norm.weight", Type: F32, NE: []int64{3}},
			{Name: "ffn_up.weight", Type: Q4_K, NE: []int64{256, 64}}} {
			t.Name = fmt.Sprintf("blk.%d.%s", i, t.Name)
			s.Tensors = append(s.Tensors, t)
		}
	}
	return s
}

// hostileSpec has text that must not get into a page as markup.
func hostileSpec() *Spec {
	s := &Spec{KV: []SpecKV{{"general.architecture", `</title><script>alert(1)</script>`}}}
	for i, bad := range []string{`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, "]]>&amp;<!--", "\x00\x01\x1b[31m\xff\u202e", "{{.Name}}", `');alert(1)//`, "a\nb\tc"} {
		s.KV = append(s.KV, SpecKV{bad, bad}, SpecKV{bad + "s", []string{bad, bad}})
		s.Tensors = append(s.Tensors, SpecTensor{Name: bad, Type: F32, NE: []int64{1 << 10}}, SpecTensor{Name: fmt.Sprintf("blk.%d.%s", i, bad), Type: F16, NE: []int64{512}})
	}
	return s
}

func parsed(t *testing.T, s *Spec, tail int) *File {
	t.Helper()
	b, err := s.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, make([]byte, tail)...)
	f, err := Parse(b, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// elements counts the elements of XML and fails if it is none.
func elements(t *testing.T, b []byte) map[string]int {
	t.Helper()
	n, d := map[string]int{}, xml.NewDecoder(bytes.NewReader(b))
	for {
		tok, err := d.Token()
		if err == io.EOF {
			return n
		}
		if err != nil {
			t.Fatalf("%v in %.400s", err, b)
		}
		if e, ok := tok.(xml.StartElement); ok {
			n[e.Name.Local]++
		}
	}
}

func TestMap(t *testing.T) {
	got := parsed(t, pictured(), 5000).AppendMap(nil, "p.gguf")
	sameFile(t, "testdata/map.svg", got)
	if elements(t, got)["svg"] != 1 {
		t.Error("no picture")
	}
	for _, want := range []string{"A &lt;b&gt;model&lt;/b&gt; &amp; more", "llama · ", "p.gguf", ">blk.2<", ">header<", ">padding<", "Q6_K: 1 tensor, ", "F32: 3 tensors, ",
		"<title>blk.1.ffn_up.weight\nQ4_K 64 × 256, 9.0 KiB</title>"} {
		if !bytes.Contains(got, []byte(want)) {
			t.Errorf("the map does not say %q", want)
		}
	}
}

func sameFile(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %v, or it differs from\n%s", name, err, got)
	}
}

// What a file says never becomes markup, and the picture stays XML.
func TestMapOfHostileNames(t *testing.T) {
	got := parsed(t, hostileSpec(), 0).AppendMap(nil, "\x00<svg>.gguf")
	if n := elements(t, got); n["svg"] != 1 || n["script"]+n["img"] > 0 {
		t.Errorf("elements %v", n)
	}
}

// A picture is bounded however many tensors there are, and every file has one.
func TestMapSizes(t *testing.T) {
	many := func(n int, name string, ne int64) *Spec {
		s := &Spec{}
		for i := range n {
			s.Tensors = append(s.Tensors, SpecTensor{Name: fmt.Sprintf(name, i, i), Type: F16, NE: []int64{ne}})
		}
		return s
	}
	for what, s := range map[string]*Spec{
		"nothing": {}, "empty": many(3, "t%d.%d", 0), "one": many(1, "t%d.%d", 9), "loose": many(10_000, "tensor%d.%d", 64),
		"blocks": many(10_000, "blk.%d.x%d", 64), "a block": many(10_000, "blk.0.%d.%d", 64),
	} {
		got := parsed(t, s, 0).AppendMap(nil, "")
		if n := elements(t, got); n["rect"] < 3 || len(got) > 2<<20 {
			t.Errorf("%s: %d bytes, %d rectangles", what, len(got), n["rect"])
		}
	}
}

func TestSquarify(t *testing.T) {
	weights := []float64{6, 6, 4, 3, 2, 2, 1, 0}
	rects := squarify(weights, rect{0, 0, 6, 4})
	if len(rects) != 7 {
		t.Fatalf("%d rectangles", len(rects))
	}
	for i, r := range rects {
		if math.Abs(r.w*r.h-weights[i]) > 1e-9 || max(r.w/r.h, r.h/r.w) > 3 || r.x < 0 || r.y < 0 || r.x+r.w > 6+1e-9 || r.y+r.h > 4+1e-9 {
			t.Errorf("%v for %v", r, weights[i])
		}
		for _, o := range rects[:i] {
			if r.x+1e-9 < o.x+o.w && o.x+1e-9 < r.x+r.w && r.y+1e-9 < o.y+o.h && o.y+1e-9 < r.y+r.h {
				t.Errorf("%v and %v overlap", r, o)
			}
		}
	}
}

func TestBlockOf(t *testing.T) {
	for name, want := range map[string]string{
		"blk.0.attn_q.weight": "blk.0", "enc.blk.12.x": "enc.blk.12", "output.weight": "", "blk.7": "", "0.x": "", "a..b": "", "": "", "v.3.4.x": "v.3",
	} {
		if got := blockOf(name); got != want {
			t.Errorf("%q is in the block %q, want %q", name, got, want)
		}
	}
}

// Every type has a colour of its own.
func TestFills(t *testing.T) {
	seen := map[string]Type{}
	for i := range types {
		if typ := Type(i); typ.Known() {
			if other, dup := seen[fills[i]]; dup || !strings.HasPrefix(fills[i], "#") {
				t.Errorf("%v has the colour %q, as %v", typ, fills[i], other)
			}
			seen[fills[i]] = typ
		}
	}
}
