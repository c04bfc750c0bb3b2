package tree

import (
	"context"
	"sync"

	"vbootfs/ggufview"
	"vbootfs/vectorboot"
)

// keepBelow is the size in bytes up to which a rendered text stays in memory. A
// larger one is kept by the kernel's page cache as long as there is room.
const keepBelow = 64 << 10

// rendered is a text of a generation as a view. Its size is known from the first
// rendering on; a long text lives only as long as the view.
func rendered(g *vectorboot.Generation, key string, render func() ([]byte, error)) (ggufview.View, error) {
	type text struct {
		size int64
		b    []byte // nil when longer than keepBelow
	}
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
	if t.b != nil {
		return ggufview.Bytes(t.b), nil
	}
	return newLazy(g, t.size, func(context.Context) (ggufview.View, error) {
		b, err := render()
		return ggufview.Bytes(b), err
	}), nil
}

// lazy is a view of known size whose content is made at the first read.
type lazy struct {
	size int64
	key  any // not nil: the generation keeps the content under this key
	work *work
}

// maker makes a content.
type maker = func(context.Context) (ggufview.View, error)

// newLazy is a view that makes its content for itself.
func newLazy(g *vectorboot.Generation, size int64, do maker) *lazy {
	return &lazy{size: size, work: &work{g: g, do: do}}
}

// newKept is a view whose content is made once per generation, for all readers.
func newKept(g *vectorboot.Generation, key any, size int64, do maker) *lazy {
	return &lazy{size: size, key: key, work: &work{g: g, do: do}}
}

func (l *lazy) Size() int64 { return l.size }

func (l *lazy) ReadAt(p []byte, off int64) (int, error) {
	return l.ReadAtContext(context.Background(), p, off)
}

// ContextReader is a view that may take long to answer and stops when its reader
// goes away.
type ContextReader interface {
	ReadAtContext(ctx context.Context, p []byte, off int64) (int, error)
}

var _ ContextReader = (*lazy)(nil)

// ReadAtContext is ReadAt that gives up with ctx.
func (l *lazy) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	v, err := l.content(ctx)
	if err != nil {
		return 0, err
	}
	return v.ReadAt(p, off)
}

// content waits until the content is made.
func (l *lazy) content(ctx context.Context) (ggufview.View, error) {
	w := l.work
	if l.key != nil {
		v, err := w.g.Once(l.key, func() (any, error) { return w, nil })
		if err != nil {
			return nil, err
		}
		w = v.(*work)
	}
	return w.wait(ctx)
}

// work makes a content for everybody who waits for it, and stops when the last
// of them has left. A failure is not remembered.
type work struct {
	g  *vectorboot.Generation
	do maker

	mu   sync.Mutex // guards all below
	made ggufview.View
	try  *try
}

// try is one attempt.
type try struct {
	waiting int // guarded by work.mu
	cancel  context.CancelFunc
	done    chan struct{} // closed when view and err are set
	view    ggufview.View
	err     error
}

func (w *work) wait(ctx context.Context) (ggufview.View, error) {
	w.mu.Lock()
	if w.made != nil {
		defer w.mu.Unlock()
		return w.made, nil
	}
	if w.try == nil {
		w.try = w.start()
	}
	t := w.try
	t.waiting++
	w.mu.Unlock()
	select {
	case <-t.done:
		return t.view, t.err
	case <-ctx.Done():
		w.leave(t)
		return nil, ctx.Err()
	}
}

// leave ends an attempt that nobody waits for.
func (w *work) leave(t *try) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t.waiting--; t.waiting > 0 {
		return
	}
	t.cancel()
	if w.try == t {
		w.try = nil
	}
}

// start begins an attempt. It holds the generation by itself, for its readers may
// all go. Caller holds mu.
func (w *work) start() *try {
	ctx, cancel := context.WithCancel(context.Background())
	t := &try{cancel: cancel, done: make(chan struct{})}
	w.g.Acquire()
	go func() {
		defer w.g.Release()
		defer cancel()
		defer close(t.done)
		t.view, t.err = w.guarded(ctx)
		w.mu.Lock()
		defer w.mu.Unlock()
		if t.err == nil {
			w.made = t.view
		}
		if w.try == t {
			w.try = nil
		}
	}()
	return t
}

// guarded turns a fault in the mapped file into an error.
func (w *work) guarded(ctx context.Context) (v ggufview.View, err error) {
	defer vectorboot.Guard(&err)()
	return w.do(ctx)
}
