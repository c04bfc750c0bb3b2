package tree

import (
	"io"
	"sync"

	"vbootfs/ggufview"
	"vbootfs/vectorboot"
)

// keepBelow is the size in bytes up to which a rendered text stays in memory. A
// larger one is kept by the kernel's page cache as long as there is room.
const keepBelow = 4 << 10

// text is what a generation remembers of a rendered file.
type text struct {
	size int64
	b    []byte // nil when longer than keepBelow
}

// rendered is a text of a generation as a view. Its size is known from the first
// rendering on; a long text lives only as long as the view.
func rendered(g *vectorboot.Generation, key string, render func() ([]byte, error)) (ggufview.View, error) {
	v, err := g.Once(key, func() (any, error) {
		b, err := render()
		t := text{size: int64(len(b)), b: b}
		if len(b) > keepBelow {
			t.b = nil
		}
		return t, err
	})
	if err != nil {
		return nil, err
	}
	t := v.(text)
	return &lazy{size: t.size, b: t.b, render: render}, nil
}

// lazy renders at the first read.
type lazy struct {
	size   int64
	render func() ([]byte, error)

	mu sync.Mutex // guards b
	b  []byte
}

func (l *lazy) Size() int64 { return l.size }

func (l *lazy) ReadAt(p []byte, off int64) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b == nil && l.size > 0 {
		b, err := l.render()
		if err != nil {
			return 0, err
		}
		l.b = b
	}
	if off < 0 || off >= int64(len(l.b)) {
		return 0, io.EOF
	}
	n := copy(p, l.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
