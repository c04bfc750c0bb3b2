package fs

import (
	"context"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// call is a request that the loop answers itself. A signal to the program that
// waits for it, or the end of the mount, interrupts it.
type call struct {
	d      *device
	unique uint64

	mu     sync.Mutex // guards all below
	gone   bool       // interrupted
	ctx    context.Context
	cancel context.CancelFunc
}

// begin makes a request known to those that come to interrupt it.
func (d *device) begin(unique uint64) *call {
	c := &call{d: d, unique: unique}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls[unique] = c
	c.gone = d.dead
	return c
}

// finish answers the request.
func (c *call) finish(st fuse.Status, parts ...[]byte) {
	c.end()
	c.d.answer(c.unique, st, parts...)
}

// end forgets the request.
func (c *call) end() {
	c.d.mu.Lock()
	delete(c.d.calls, c.unique)
	c.d.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel()
	}
}

func (c *call) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	if c.cancel != nil {
		c.cancel()
	}
}

// context is done when the request is interrupted or answered.
func (c *call) context() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx == nil {
		c.ctx, c.cancel = context.WithCancel(bg)
		if c.gone {
			c.cancel()
		}
	}
	return c.ctx
}

// read answers READ. buf is room for what has to be copied.
func (d *device) read(in *fuse.ReadIn, buf []byte) {
	c := d.begin(in.Unique)
	defer c.end() // also when it panics
	b, st := d.fs.read(c, in, buf[:in.Size])
	c.finish(st, b)
}

// open answers OPEN.
func (d *device) open(in *fuse.OpenIn) {
	c := d.begin(in.Unique)
	defer c.end()
	var out fuse.OpenOut
	st := d.fs.openFile(c, in, &out)
	c.finish(st, bytesOf(&out))
}

// command runs what is written to a command file; false if the file is none.
func (d *device) command(in *fuse.WriteIn, data []byte) bool {
	h := d.fs.handle(in.Fh)
	if h == nil || h.n.live != nil || h.n.ent.Do == nil {
		return false
	}
	c := d.begin(in.Unique)
	defer c.end()
	out := fuse.WriteOut{Size: uint32(len(data))}
	c.finish(d.fs.command(c, h, data), bytesOf(&out))
	return true
}
