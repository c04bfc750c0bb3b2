package fs

import (
	"context"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// call is a request that the loop answers itself. A signal to the program that
// waits for it, or the end of the mount, interrupts it.
type call struct {
	d      *device
	unique uint64

	mu     sync.Mutex // guards all below
	gone   bool       // interrupted
	left   func()     // called then; may be nil
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
	c.d.forget(c.unique)
	c.d.answer(c.unique, st, parts...)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel()
	}
}

func (c *call) interrupt() {
	c.mu.Lock()
	c.gone = true
	if c.cancel != nil {
		c.cancel()
	}
	left := c.left
	c.mu.Unlock()
	if left != nil {
		left()
	}
}

// onInterrupt has f called when the request is interrupted; false if it was already.
func (c *call) onInterrupt(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = f
	return !c.gone
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
	h := d.fs.handle(in.Fh)
	if h.row != nil && h.row.stream != nil {
		wait := in.Flags&unix.O_NONBLOCK == 0 || d.fs.noPoll // who cannot poll would never come back
		h.row.stream.read(c, int(in.Size), wait)
		return
	}
	b, st := d.fs.read(c, h, in, buf[:in.Size])
	c.finish(st, b)
}

// open answers OPEN.
func (d *device) open(in *fuse.OpenIn) {
	c := d.begin(in.Unique)
	var out fuse.OpenOut
	st := d.fs.openFile(c, in, &out)
	c.finish(st, bytesOf(&out))
}

// command runs what is written to a command file; false if the file is none.
func (d *device) command(in *fuse.WriteIn, data []byte) bool {
	h := d.fs.handle(in.Fh)
	if h.n.live != nil || h.n.ent.Do == nil {
		return false
	}
	c := d.begin(in.Unique)
	out := fuse.WriteOut{Size: uint32(len(data))}
	d.fs.command(c, h, string(data), func(st fuse.Status) { c.finish(st, bytesOf(&out)) })
	return true
}

// pollIn and pollOut are POLL and its answer (linux/fuse.h).
type pollIn struct {
	fuse.InHeader
	Fh, Kh        uint64
	Flags, Events uint32
}

type pollOut struct{ Revents, _ uint32 }

// poll answers POLL. Files that are no streams are always ready.
func (d *device) poll(in *pollIn) {
	if d.fs.noPoll {
		d.answer(in.Unique, fuse.ENOSYS)
		return
	}
	out := pollOut{Revents: pollRead | pollWrite}
	if h := d.fs.handle(in.Fh); h.row != nil && h.row.stream != nil {
		out.Revents = h.row.stream.events(in.Kh, in.Flags&fuse.FUSE_POLL_SCHEDULE_NOTIFY != 0)
	}
	d.answer(in.Unique, fuse.OK, bytesOf(&out))
}
