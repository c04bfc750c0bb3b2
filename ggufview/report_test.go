package ggufview

import (
	"bytes"
	"encoding/xml"
	"io"
	"math"
	"strings"
	"testing"
)

// statsOf is the statistics that a report of a file of zeros wants.
func statsOf(f *File) (out []*Stats) {
	for _, t := range f.ReportTensors() {
		out = append(out, &Stats{Count: t.Elements, Zeros: t.Elements, Lo: -0.5, Hi: 0.5, Hist: [64]int64{32: t.Elements}})
	}
	return out
}

// tags counts the elements of HTML; it fails where one is closed that is not open.
func tags(t *testing.T, b []byte) map[string]int {
	t.Helper()
	// The text of a script is no markup in HTML, but in XML it is.
	head, script, ok := bytes.Cut(b, []byte("<script>"))
	_, tail, closed := bytes.Cut(script, []byte("</script>"))
	if !ok || !closed || bytes.Contains(tail, []byte("<script")) {
		t.Fatal("not one script")
	}
	n, d := map[string]int{}, xml.NewDecoder(io.MultiReader(bytes.NewReader(head), bytes.NewReader(tail)))
	d.AutoClose, d.Strict, d.Entity = []string{"meta", "br"}, false, xml.HTMLEntity
	for {
		tok, err := d.Token()
		if err == io.EOF {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := tok.(xml.StartElement); ok {
			n[e.Name.Local]++
		}
	}
}

// A page is as long without the statistics as with them, and shows what there is.
func TestReport(t *testing.T) {
	s := pictured()
	s.KV = append(s.KV, SpecKV{"tokens", make([]string, 1000)}, SpecKV{"numbers", []float32{1, 0.5}}, SpecKV{"template", strings.Repeat("{% x %}\n", 1000)})
	f := parsed(t, s, 0)
	parts := []Part{{"a-00001-of-00002.gguf", 1 << 20, 3}, {"a-00002-of-00002.gguf", 1 << 10, 7}}
	empty, err := f.Report("p.gguf", parts, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.Report("p.gguf", parts, statsOf(f))
	if err != nil || len(got) != len(empty) || len(got) > 100<<10 {
		t.Errorf("%d bytes, without statistics %d: %v", len(got), len(empty), err)
	}
	n := tags(t, got)
	if n["figure"] != f.NumTensors() || n["svg"] != 1+f.NumTensors() || n["table"] != 4 || n["tr"] != 4+2+3+f.NumTensors()+len(f.KVs) {
		t.Errorf("elements %v", n)
	}
	for _, want := range []string{"A &lt;b&gt;model&lt;/b&gt; &amp; more", "a-00002-of-00002.gguf", "array[string] of 1,000", "<td>1, 0.5</td>",
		`data-v="73728"`, "background:#f5b35c", "mean 0, std 0, zeros 100%"} {
		if !bytes.Contains(got, []byte(want)) {
			t.Errorf("the page does not say %q", want)
		}
	}
	for _, never := range []string{"http:", "https:", "src=", "ZgotmplZ"} {
		if rest := bytes.ReplaceAll(got, []byte("http://www.w3.org/2000/svg"), nil); bytes.Contains(rest, []byte(never)) {
			t.Errorf("the page has %q", never)
		}
	}
}

// What a file says never becomes markup.
func TestReportOfHostileNames(t *testing.T) {
	f := parsed(t, hostileSpec(), 0)
	got, err := f.Report(`"><script>alert(1)</script>`, nil, statsOf(f))
	if err != nil {
		t.Fatal(err)
	}
	if n := tags(t, got); n["img"] > 0 || n["figure"] != f.NumTensors() || n["tr"] != 3+2+f.NumTensors()+len(f.KVs) {
		t.Errorf("elements %v", n)
	}
	if bytes.ContainsAny(got, "\x00\x01\x1b\u202e") {
		t.Error("control characters")
	}
}

func TestReportOfNothing(t *testing.T) {
	got, err := parsed(t, &Spec{}, 0).Report("a.gguf", nil, nil)
	if err != nil || !bytes.Contains(got, []byte("<h1>a.gguf</h1>")) {
		t.Errorf("%v: %.200s", err, got)
	}
}

// Of a large model some is left out, and the page says so.
func TestReportIsBounded(t *testing.T) {
	s := &Spec{}
	for i := range reportRows + 1 {
		s.Tensors = append(s.Tensors, SpecTensor{Name: strings.Repeat("x", i%9) + string(rune('a'+i%26)) + px(float64(i)), Type: I8, NE: []int64{1}})
	}
	s.Tensors[0].NE[0] = reportBytes + 1
	f := parsed(t, s, 0)
	picked := f.ReportTensors()
	if len(picked) != reportCharts-1 || picked[0].Index == 0 {
		t.Errorf("%d histograms", len(picked))
	}
	got, err := f.Report("p", nil, nil)
	if err != nil || !bytes.Contains(got, []byte("The first 10000 of 10,001;")) || len(got) > 4<<20 {
		t.Errorf("%d bytes: %v", len(got), err)
	}
}

// The longest chart fits.
func TestChartsFit(t *testing.T) {
	s := Stats{Count: math.MaxInt64, NaN: math.MaxInt32, Inf: math.MaxInt32, Zeros: math.MaxInt64, Mean: -math.MaxFloat32, Std: math.SmallestNonzeroFloat32, Lo: -math.MaxFloat32, Hi: -math.MaxFloat32}
	for i := range s.Hist {
		s.Hist[i] = int64(1000 + i)
	}
	if n := len(s.chart("#000000")); n > chartBytes || n < 500 {
		t.Errorf("%d bytes", n)
	}
	s = Stats{Count: math.MaxInt64, NaN: math.MaxInt64}
	if n := len(s.chart("#000000")); n > chartBytes {
		t.Errorf("%d bytes", n)
	}
}

func BenchmarkReport(b *testing.B) {
	s := &Spec{}
	for i := range 10_000 {
		s.Tensors = append(s.Tensors, SpecTensor{Name: "blk." + px(float64(i/100)) + ".x" + px(float64(i)), Type: F16, NE: []int64{64}})
	}
	raw, _ := s.Bytes()
	f, err := Parse(raw, int64(len(raw)))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := f.Report("p", nil, nil); err != nil {
			b.Fatal(err)
		}
	}
}
