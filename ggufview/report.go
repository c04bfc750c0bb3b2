package ggufview

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"strconv"
	"strings"
	"unicode"
)

// Bounds of the page: what a browser shows without effort. The page says what
// they left out.
const (
	reportRows   = 10_000   // of tensors, and of keys
	reportCharts = 96       // histograms
	reportBytes  = 64 << 20 // of tensor data, read for all histograms together
	reportText   = 4 << 10  // of a string value, in bytes
	reportArray  = 12       // elements of an array

	chartBytes = 1 << 10 // of the page for a histogram, whatever it shows
	chartHigh  = 48
)

//go:embed report.html
var reportHTML string

var reportPage = template.Must(template.New("report").Parse(reportHTML))

// Part is one of the files that a model was put together from.
type Part struct {
	Name    string
	Bytes   int64
	Tensors int
}

// ReportTensors are the tensors whose statistics the report shows: spread evenly
// over the file, and together not too much to read.
func (f *File) ReportTensors() (out []Tensor) {
	left, n := int64(reportBytes), min(f.NumTensors(), reportCharts)
	for i := range n {
		t := f.TensorAt(i * f.NumTensors() / n)
		if t.Type.CanDequantize() && t.Elements > 0 && t.Bytes <= left {
			out, left = append(out, t), left-t.Bytes
		}
	}
	return out
}

// Report is a page of HTML on the model, whole in itself. path is what the file
// is called, parts are the files it consists of if these are several. stats are
// those of ReportTensors, in that order. The page is as long without them, so
// that its length costs no statistics.
func (f *File) Report(path string, parts []Part, stats []*Stats) ([]byte, error) {
	name, _ := f.Str("general.name")
	page := struct {
		Name, Facts, Summary string
		Map, Rows            template.HTML
		Parts                []reportPart
		Mix                  []reportMix
		Charts               []reportChart
		Keys                 []reportKey
		Tensors              int
		NTensors, NKeys      string // how many there are, "" if all are shown
	}{
		Name: printable(name, 200), Facts: printable(strings.Join(f.facts(path), " · "), 400), Summary: string(f.AppendSummary(nil)),
		Map:  template.HTML(f.AppendMap(nil, path)), // escaped there
		Keys: f.reportKeys(), Rows: f.tensorRows(), Tensors: min(f.NumTensors(), reportRows), Mix: f.reportMix(), Charts: f.reportCharts(stats),
	}
	if page.Name == "" {
		page.Name = printable(path, 200)
	}
	for _, p := range parts {
		page.Parts = append(page.Parts, reportPart{printable(p.Name, 400), p.Tensors, p.Bytes, size(float64(p.Bytes))})
	}
	if f.NumTensors() > page.Tensors {
		page.NTensors = grouped(uint64(f.NumTensors()))
	}
	if len(f.KVs) > len(page.Keys) {
		page.NKeys = grouped(uint64(len(f.KVs)))
	}
	var b bytes.Buffer
	err := reportPage.Execute(&b, page)
	return b.Bytes(), err
}

type reportPart struct {
	Name    string
	Tensors int
	Bytes   int64
	Size    string
}

type reportMix struct {
	mixRow
	Fill, Parameters, Size string
	Bits, Share            string
}

func (f *File) reportMix() (out []reportMix) {
	for _, m := range f.mix() {
		out = append(out, reportMix{m, fills[m.Type], short(m.Elements), size(float64(m.Bytes)),
			fmt.Sprintf("%.5g", 8*float64(m.BlockBytes())/float64(m.BlockElements())), fmt.Sprintf("%.1f%%", 100*float64(m.Bytes)/float64(f.Size))})
	}
	return out
}

// tensorRows is written without the template, which takes 20 times as long: the
// length of the page is asked for before anybody reads it.
func (f *File) tensorRows() template.HTML {
	var b []byte
	cell := func(value int64, text string) {
		b = fmt.Appendf(b, `<td class="n" data-v="%d">%s</td>`, value, text)
	}
	for i := range min(f.NumTensors(), reportRows) {
		t := f.TensorAt(i)
		b = append(b, "<tr>"...)
		cell(int64(i), strconv.Itoa(i))
		b = append(b, "<td>"+template.HTMLEscapeString(printable(t.Name, 200))+`</td><td><i style="background:`+fills[t.Type]+`"></i>`+t.Type.String()+"</td>"...)
		b = append(b, `<td class="n">`+t.times()+"</td>"...)
		cell(t.Elements, strconv.FormatInt(t.Elements, 10))
		cell(t.Bytes, size(float64(t.Bytes)))
		cell(t.Offset, strconv.FormatInt(t.Offset, 10))
		b = append(b, "</tr>\n"...)
	}
	return template.HTML(b)
}

type reportKey struct{ Key, Type, Value, More string }

func (f *File) reportKeys() []reportKey {
	out := make([]reportKey, min(len(f.KVs), reportRows))
	for i := range out {
		kv := &f.KVs[i]
		out[i] = reportKey{Key: printable(kv.Key, 200), Type: kv.TypeName()}
		if kv.Type == ValueArray {
			out[i].Type += fmt.Sprintf(" of %s", grouped(uint64(kv.Count)))
		}
		if text := f.reportValue(kv); len(text) > 200 || strings.Contains(text, "\n") {
			out[i].Value, out[i].More = oneLine(text, 80), text
		} else {
			out[i].Value = text
		}
	}
	return out
}

// reportValue is a value as text; of long ones the beginning.
func (f *File) reportValue(kv *KV) string {
	if p, ok := f.Text(kv); ok {
		return printable(string(p[:min(len(p), reportText+4)]), reportText)
	}
	if kv.Type != ValueArray {
		return strings.TrimSpace(string(f.ValueText(kv)))
	}
	var parts []string
	rest := f.elements(kv)
	for range min(kv.Count, reportArray) {
		if kv.Elem == ValueString {
			var s []byte
			s, rest = f.cutText(rest)
			parts = append(parts, fmt.Sprintf("%q", s[:min(len(s), 40)]))
			continue
		}
		n := kv.Elem.Bytes()
		parts, rest = append(parts, string(f.appendNumber(nil, kv.Elem, rest[:n]))), rest[n:]
	}
	if kv.Count > reportArray {
		parts = append(parts, "…")
	}
	return strings.Join(parts, ", ")
}

// printable is at most so many bytes of a text, without control characters.
func printable(s string, most int) string {
	cut := s[:min(len(s), most)]
	cut = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || r == '\n' || r == '\t' {
			return r
		}
		return unicode.ReplacementChar
	}, cut)
	if len(s) > most {
		cut += "…"
	}
	return cut
}

type reportChart struct {
	Name, What string
	Chart      template.HTML
}

func (f *File) reportCharts(stats []*Stats) (out []reportChart) {
	for i, t := range f.ReportTensors() {
		c := reportChart{Name: printable(t.Name, 200), What: t.Type.String() + " " + t.times()}
		text := ""
		if stats != nil {
			text = stats[i].chart(fills[t.Type])
		}
		c.Chart = template.HTML(text + strings.Repeat(" ", max(0, chartBytes-len(text)))) // made of numbers
		out = append(out, c)
	}
	return out
}

// chart draws the histogram and writes the numbers, in at most chartBytes bytes.
func (s *Stats) chart(fill string) string {
	if s.finite() == 0 {
		return fmt.Sprintf("<p>no finite value, %d NaN, %d infinite</p>", s.NaN, s.Inf)
	}
	most := int64(1)
	for _, n := range s.Hist {
		most = max(most, n)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 128 %d" preserveAspectRatio="none"><path fill="%s" d="M0 %[1]d`, chartHigh, fill)
	for _, n := range s.Hist {
		fmt.Fprintf(&b, "V%sh2", px(chartHigh-chartHigh*float64(n)/float64(most)))
	}
	fmt.Fprintf(&b, `V%dz"/></svg><p class="ends"><span>%.4g</span><span>%.4g</span></p><p>mean %.4g, std %.4g, zeros %.3g%%`,
		chartHigh, s.Lo, s.Hi, s.Mean, s.Std, 100*float64(s.Zeros)/float64(s.Count))
	if s.NaN+s.Inf > 0 {
		fmt.Fprintf(&b, `, <strong>%d NaN, %d infinite</strong>`, s.NaN, s.Inf)
	}
	b.WriteString("</p>")
	return b.String()
}
