package ggufview

import (
	"cmp"
	"fmt"
	"html"
	"slices"
	"strconv"
	"strings"
)

// The picture, in pixels. The least cells bound its size: a model of any number
// of tensors gives at most some eight thousand rectangles.
const (
	mapWidth  = 1200.0
	mapMargin = 16.0
	mapTop    = 92.0  // title and strip
	mapHeight = 640.0 // of the treemap
	stripTop  = 62.0
	stripHigh = 16.0

	leastCell  = 100.0  // square pixels; smaller tensors are merged
	leastGroup = 900.0  // smaller blocks are dissolved
	leastExtra = 1600.0 // header and padding are drawn at least so large
	letter     = 0.6    // width of a letter in sizes of the font, rather too large
)

// fills colours the types: plain ones blue and green, K-quants warm, the older
// ones brown, IQ violet, ternary and FP4 pink, integers grey. Dark text is
// readable on all of them.
var fills = [...]string{
	0: "#9fc3e8", 1: "#6ba3dc", 2: "#c9a77b", 3: "#d9b98f", 6: "#b8925e", 7: "#dcc9a0", 8: "#a9c46c", 9: "#c3d69b",
	10: "#e57b6f", 11: "#f0916a", 12: "#f5b35c", 13: "#f7d35f", 14: "#e3e37a", 15: "#f2eaa0",
	16: "#a08ad6", 17: "#b59ae0", 18: "#c4a6e8", 19: "#8f7fc4", 20: "#d3b3ee", 21: "#b88fd9", 22: "#a67bcc", 23: "#caa0d8",
	24: "#b9bec6", 25: "#a7aeb8", 26: "#969eaa", 27: "#868f9c", 28: "#c2d8f0", 29: "#8a76b5", 30: "#68bfb5",
	34: "#e38fb4", 35: "#d97ba0", 39: "#f0a8c8", 40: "#c97f95", 41: "#d88c86", 42: "#e0a08a",
}

const (
	headerFill  = "#cfd3d8"
	paddingFill = "url(#pad)"
)

// AppendMap appends a picture of the file as SVG: a strip in file order, below
// it a treemap in which every area is a number of bytes, and a legend. path is
// what the file is called.
func (f *File) AppendMap(dst []byte, path string) []byte {
	m := &fileMap{f: f, b: dst}
	mix := f.mix()
	m.begin(path, mix)
	m.strip()
	m.treemap()
	m.legend(mix)
	m.raw("</svg>\n")
	return m.b
}

// mixRow is what one tensor type takes.
type mixRow struct {
	Type
	Tensors, Elements, Bytes uint64
}

// mix is the tensor types of the file, the one with the most bytes first.
func (f *File) mix() (rows []mixRow) {
	at := map[Type]int{}
	for _, t := range f.Tensors() {
		k, ok := at[t.Type]
		if !ok {
			k = len(rows)
			at[t.Type], rows = k, append(rows, mixRow{Type: t.Type})
		}
		rows[k].Tensors++
		rows[k].Elements += uint64(t.Elements)
		rows[k].Bytes += uint64(t.Bytes)
	}
	slices.SortFunc(rows, func(a, b mixRow) int { return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Type, b.Type)) })
	return rows
}

// fileMap is a picture that is being drawn.
type fileMap struct {
	f *File
	b []byte
}

func (m *fileMap) raw(s string) { m.b = append(m.b, s...) }

func (m *fileMap) put(format string, args ...any) { m.b = fmt.Appendf(m.b, format, args...) }

// xmlText is a text of the file fit for XML, which has no place for control
// characters, not even as numbers.
func xmlText(s string, most int) string { return html.EscapeString(oneLine(s, most)) }

// rect is a place in the picture.
type rect struct{ x, y, w, h float64 }

// px writes a number of pixels.
func px(v float64) string { return strconv.FormatFloat(float64(int(v*10+0.5))/10, 'f', -1, 64) }

// box draws a rectangle that says what it is under the pointer. tip is XML.
func (m *fileMap) box(r rect, fill, tip string) {
	m.raw(`<rect x="` + px(r.x) + `" y="` + px(r.y) + `" width="` + px(max(r.w, 0)) + `" height="` + px(max(r.h, 0)) +
		`" fill="` + fill + `"><title>` + tip + "</title></rect>\n")
}

// times is the shape as people write it: 64 × 32.
func (t *Tensor) times() string {
	return strings.ReplaceAll(string(t.appendShape(nil, 'x')), "x", " × ")
}

// label writes XML text at a place.
func (m *fileMap) label(x, y float64, class, text string) {
	m.raw(`<text x="` + px(x) + `" y="` + px(y) + `" class="` + class + `">` + text + "</text>\n")
}

func (m *fileMap) begin(path string, mix []mixRow) {
	high := mapTop + mapHeight + 40 + 20*float64((len(mix)+2+3)/4)
	m.put(`<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %[1]v %[2]v" role="img" class="vbmap" font-family="sans-serif" font-size="12" fill="#1c1e21">`+"\n",
		mapWidth, high)
	m.raw(`<style>
.vbmap .name{font-size:20px;font-weight:bold}
.vbmap .dim{fill:#5c636b}
.vbmap .on{font-size:11px;fill:#16181a}
.vbmap .small{font-size:10px;fill:#3a3f45}
@media (prefers-color-scheme:dark){.vbmap .bg{fill:#17191c}.vbmap .fg{fill:#e6e8ea}.vbmap .dim{fill:#a3abb3}.vbmap .cells{stroke:#17191c}}
</style>
<defs><pattern id="pad" width="6" height="6" patternUnits="userSpaceOnUse"><path d="M0 0h6v6h-6z" fill="#e4e6e9"/><path d="M0 6L6 0" stroke="#7d858d"/></pattern></defs>
`)
	m.put(`<rect class="bg" width="%v" height="%v" fill="#fff"/>`+"\n", mapWidth, high)
	name, _ := m.f.Str("general.name")
	m.label(mapMargin, 30, "name fg", xmlText(cmp.Or(name, path), 80))
	m.label(mapMargin, 50, "dim", xmlText(strings.Join(m.f.facts(path), " · "), 160))
}

// facts is what a title says about the model.
func (f *File) facts(path string) []string {
	facts := []string{f.Architecture(), size(float64(f.Size)), short(f.parameters()) + " parameters",
		grouped(uint64(f.NumTensors())) + " tensors", fmt.Sprintf("GGUF %d", f.Version), path}
	return slices.DeleteFunc(facts, func(s string) bool { return s == "" })
}

// strip draws the file from its first byte to its last, a column a piece: of
// several that fall into a column, the last.
func (m *fileMap) strip() {
	const wide = int(mapWidth - 2*mapMargin)
	var columns [wide]string
	paint := func(from, to int64, fill string) {
		scale := float64(wide) / float64(max(m.f.Size, 1))
		a, b := int(float64(from)*scale), int(float64(to)*scale+0.999)
		for i := min(a, wide-1); i < min(max(b, a+1), wide); i++ {
			columns[i] = fill
		}
	}
	paint(0, m.f.Size, paddingFill)
	for _, t := range m.f.Tensors() {
		if t.Bytes > 0 {
			paint(t.Offset, t.Offset+t.Bytes, fills[t.Type])
		}
	}
	paint(0, m.f.HeaderBytes, headerFill)
	m.raw("<g><title>the file from its first byte to its last</title>\n")
	for i := 0; i < wide; {
		from := i
		for i++; i < wide && columns[i] == columns[from]; i++ {
		}
		m.put(`<path d="M%v %vh%vv%vh-%[3]vz" fill="%[5]s"/>`+"\n", mapMargin+float64(from), stripTop, i-from, stripHigh, columns[from])
	}
	m.raw("</g>\n")
}

// cell is a part of the treemap: a tensor, several, or a block with cells in it.
type cell struct {
	name   string // as far as its block does not say it
	kind   string // type
	tip    string // XML
	fill   string
	bytes  int64
	weight float64 // square pixels
	cells  []cell
}

// blockOf is the first part of a name that ends in a number ("blk.12"), "" if
// there is none.
func blockOf(name string) string {
	for i := 0; i < len(name); {
		end := strings.IndexByte(name[i:], '.')
		if end < 0 {
			return ""
		}
		part := name[i : i+end]
		if i > 0 && part != "" && strings.Trim(part, "0123456789") == "" {
			return name[:i+end]
		}
		i += end + 1
	}
	return ""
}

// ownBytes is what each tensor adds to the file, and their sum: nothing if it
// shares the bytes of an earlier one.
func (f *File) ownBytes() (own []int64, sum int64) {
	own, seen := make([]int64, f.NumTensors()), make(map[int64]bool, f.NumTensors())
	for i, t := range f.Tensors() {
		if t.Bytes == 0 || seen[t.Offset] {
			continue
		}
		seen[t.Offset] = true
		own[i], sum = t.Bytes, sum+t.Bytes
	}
	return own, sum
}

// padding is the bytes of the file that are neither header nor tensors.
func (f *File) padding() int64 {
	_, data := f.ownBytes()
	return f.Size - f.HeaderBytes - data
}

// cells groups the tensors by block and gives everything its area. The tensors
// of blocks that are too small to see are merged.
func (m *fileMap) cells() (out []cell) {
	scale := (mapWidth - 2*mapMargin) * mapHeight / float64(max(m.f.Size, 1))
	own, _ := m.f.ownBytes()
	sizes := map[string]int64{}
	for i, t := range m.f.Tensors() {
		sizes[blockOf(t.Name)] += own[i]
	}
	loose := &pool{scale: scale}
	pools, order := map[string]*pool{"": loose}, []string{}
	for i, t := range m.f.Tensors() {
		block := blockOf(t.Name)
		if block != "" && float64(sizes[block])*scale < leastGroup {
			loose.small(&t, own[i])
			continue
		}
		if pools[block] == nil {
			pools[block], order = &pool{scale: scale}, append(order, block)
		}
		pools[block].add(&t, own[i], strings.TrimPrefix(t.Name[len(block):], "."))
	}
	out = loose.done()
	for _, name := range order {
		out = append(out, pools[name].block(name, sizes[name]))
	}
	return append(out, m.extra("header", headerFill, m.f.HeaderBytes, scale), m.extra("padding", paddingFill, m.f.padding(), scale))
}

// extra is a part of the file that is no tensor.
func (m *fileMap) extra(name, fill string, bytes int64, scale float64) cell {
	c := cell{name: name, fill: fill, bytes: bytes, tip: name + ": " + size(float64(bytes))}
	if bytes > 0 {
		c.weight = max(float64(bytes)*scale, leastExtra)
	}
	return c
}

// pool collects the cells of a block. Small tensors become one cell per type.
type pool struct {
	scale  float64
	count  int
	cells  []cell
	merged map[Type]*cell
	many   map[Type]uint64
}

func (p *pool) add(t *Tensor, bytes int64, name string) {
	if float64(bytes)*p.scale < leastCell {
		p.small(t, bytes)
		return
	}
	p.count++
	tip := xmlText(t.Name, 120) + "\n" + t.Type.String() + " " + t.times() + ", " + size(float64(bytes))
	p.cells = append(p.cells, cell{name: name, kind: t.Type.String(), tip: tip, fill: fills[t.Type], bytes: bytes, weight: float64(bytes) * p.scale})
}

func (p *pool) small(t *Tensor, bytes int64) {
	if p.merged == nil {
		p.merged, p.many = map[Type]*cell{}, map[Type]uint64{}
	}
	c := p.merged[t.Type]
	if c == nil {
		c = &cell{kind: t.Type.String(), fill: fills[t.Type]}
		p.merged[t.Type] = c
	}
	p.count++
	p.many[t.Type]++
	c.bytes += bytes
}

func (p *pool) done() []cell {
	for t, c := range p.merged {
		c.name = grouped(p.many[t]) + " small"
		c.tip = plural(p.many[t], "small tensor") + "\n" + t.String() + ", " + size(float64(c.bytes))
		c.weight = float64(c.bytes) * p.scale
		p.cells = append(p.cells, *c)
	}
	return p.cells
}

// block is all of the pool as one cell.
func (p *pool) block(name string, bytes int64) cell {
	tip := xmlText(name, 80) + ": " + plural(uint64(p.count), "tensor") + ", " + size(float64(bytes))
	return cell{name: name, tip: tip, bytes: bytes, weight: float64(bytes) * p.scale, cells: p.done()}
}

func (m *fileMap) treemap() {
	m.raw(`<g class="cells" stroke="#fff" stroke-width="1">` + "\n")
	m.layOut(m.cells(), rect{mapMargin, mapTop, mapWidth - 2*mapMargin, mapHeight})
	m.raw("</g>\n")
}

// layOut draws cells in a place, and what is in them. Text has no outline.
func (m *fileMap) layOut(cells []cell, in rect) {
	slices.SortStableFunc(cells, func(a, b cell) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(len(a.name), len(b.name)), cmp.Compare(a.name, b.name))
	})
	weights := make([]float64, len(cells))
	for i := range cells {
		weights[i] = cells[i].weight
	}
	for i, r := range squarify(weights, in) {
		c := &cells[i]
		if c.cells == nil {
			m.box(r, c.fill, c.tip)
			m.caption(r, c.name, strings.TrimSpace(c.kind+" "+size(float64(c.bytes))))
			continue
		}
		m.box(r, "#c3c8ce", c.tip)
		inner := rect{r.x + 1, r.y + 1, r.w - 2, r.h - 2}
		if room := int((r.w - 8) / (11 * letter)); r.h >= 48 && room >= len(c.name) {
			m.raw(`<g stroke="none">`)
			m.label(r.x+4, r.y+11.5, "on", xmlText(c.name, room))
			m.raw("</g>")
			inner.y, inner.h = inner.y+14, inner.h-14
		}
		m.layOut(c.cells, inner)
	}
}

// caption writes into a cell what fits: the name, without its usual ending if
// need be, and the size.
func (m *fileMap) caption(r rect, name, what string) {
	room := int((r.w - 8) / (11 * letter))
	for _, cut := range []string{".weight", ".bias"} {
		if len(name) > room {
			name = strings.TrimSuffix(name, cut)
		}
	}
	if len(name) > room && room >= 12 {
		name = oneLine(name, room)
	} else if len(name) > room {
		return
	}
	if r.h < 16 || name == "" {
		return
	}
	m.raw(`<g stroke="none">`)
	m.label(r.x+4, r.y+12.5, "on", xmlText(name, room))
	if r.h >= 30 && len(what) <= room {
		m.label(r.x+4, r.y+25, "small", what)
	}
	m.raw("</g>")
}

// squarify divides a place among weights, the largest first, so that the parts
// are nearly squares (Bruls, Huizing and van Wijk 2000). Nothing is given to
// weights of zero, which come last.
func squarify(weights []float64, in rect) (out []rect) {
	left := 0.0
	for _, w := range weights {
		left += w
	}
	for len(weights) > 0 && weights[0] > 0 && in.w > 0 && in.h > 0 {
		side, scale := min(in.w, in.h), in.w*in.h/left
		worst := func(n int, sum float64) float64 {
			s := sum * scale / side
			return max(weights[0]*scale/(s*s), s*s/(weights[n-1]*scale))
		}
		n, row := 1, weights[0]
		for n < len(weights) && weights[n] > 0 && worst(n+1, row+weights[n]) <= worst(n, row) {
			row += weights[n]
			n++
		}
		out = append(out, in.cut(weights[:n], row, row/left)...)
		weights, left = weights[n:], left-row
	}
	return out
}

// cut takes a share of the place, along its shorter side, and divides it among weights.
func (in *rect) cut(weights []float64, sum, share float64) (out []rect) {
	row, column := *in, in.w >= in.h
	if column {
		row.w *= share
		in.x, in.w = in.x+row.w, in.w-row.w
	} else {
		row.h *= share
		in.y, in.h = in.y+row.h, in.h-row.h
	}
	for _, w := range weights {
		r := row
		if column {
			r.h *= w / sum
			row.y += r.h
		} else {
			r.w *= w / sum
			row.x += r.w
		}
		out = append(out, r)
	}
	return out
}

func (m *fileMap) legend(mix []mixRow) {
	total := float64(max(m.f.Size, 1))
	n := 0
	entry := func(fill, what string, bytes float64) {
		x := mapMargin + float64(n%4)*(mapWidth-2*mapMargin)/4
		y := mapTop + mapHeight + 18 + 20*float64(n/4)
		n++
		m.put(`<rect x="%s" y="%s" width="14" height="14" rx="2" fill="%s"/>`+"\n", px(x), px(y), fill)
		m.label(x+20, y+11.5, "fg", fmt.Sprintf("%s, %s, %.1f%%", what, size(bytes), 100*bytes/total))
	}
	for _, row := range mix {
		entry(fills[row.Type], row.Type.String()+": "+plural(row.Tensors, "tensor"), float64(row.Bytes))
	}
	entry(headerFill, "header", float64(m.f.HeaderBytes))
	entry(paddingFill, "padding", float64(m.f.padding()))
}

func plural(n uint64, word string) string {
	if n != 1 {
		word += "s"
	}
	return grouped(n) + " " + word
}
