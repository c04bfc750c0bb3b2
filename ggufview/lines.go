package ggufview

import "sort"

// lines is a text that is written when it is read: nothing of it is kept but
// where every 64th line begins, so a text of a million lines costs no more memory
// than one window on it.
type lines struct {
	head, tail string
	n          int
	line       func(dst []byte, i int) []byte // appends line i, each time the same
	starts     []int64                        // of the groups, and of the tail
}

const linesGroup = 64

// newLines writes all lines once, to measure them.
func newLines(head, tail string, n int, line func(dst []byte, i int) []byte) View {
	v := &lines{head: head, tail: tail, n: n, line: line, starts: make([]int64, 0, n/linesGroup+2)}
	at := int64(len(head))
	var buf []byte
	for i := 0; i < n; i += linesGroup {
		v.starts = append(v.starts, at)
		buf = v.group(buf[:0], i/linesGroup)
		at += int64(len(buf))
	}
	v.starts = append(v.starts, at)
	return v
}

// group appends group g.
func (v *lines) group(dst []byte, g int) []byte {
	for i := g * linesGroup; i < min((g+1)*linesGroup, v.n); i++ {
		dst = v.line(dst, i)
	}
	return dst
}

func (v *lines) Size() int64 { return v.starts[len(v.starts)-1] + int64(len(v.tail)) }

func (v *lines) ReadAt(p []byte, off int64) (int, error) {
	p, eof := clip(v.Size(), p, off)
	if len(p) == 0 {
		return 0, eof
	}
	whole := p
	if off < int64(len(v.head)) {
		n := copy(p, v.head[off:])
		p, off = p[n:], off+int64(n)
	}
	groups := len(v.starts) - 1
	g := sort.Search(groups, func(i int) bool { return v.starts[i+1] > off })
	var buf []byte
	for ; g < groups && len(p) > 0; g++ {
		buf = v.group(buf[:0], g)
		n := copy(p, buf[off-v.starts[g]:])
		p, off = p[n:], off+int64(n)
	}
	if len(p) > 0 {
		copy(p, v.tail[off-v.starts[groups]:])
	}
	return len(whole), eof
}
