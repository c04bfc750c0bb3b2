package vectorboot

import (
	"crypto/sha256"
	"encoding/hex"
	"sync"

	"vbootfs/shm"
)

// The control page of a model, 4096 bytes that its readers map. Words are
// little-endian on the machines that exist here: the machine's own order.
//
//	off size field       who writes
//	  0   8  magic       daemon  "VBOOTCTL"
//	  8   4  abi         daemon  1
//	 12   4  size        daemon  4096
//	 16   8  sequence    daemon  odd while the segment is being changed
//	 24   8  generation  daemon  the current one
//	 32   8  segment     daemon  inode number; another one means: map the file anew
//	 40   8  bytes       daemon  size of the segment
//	 64   4  doorbell    anyone  futex word; one more for every change and interrupt
//	 68   4  opcode      anyone  of the newest interrupt
//	 72   8  request     daemon  number of the newest interrupt that came through ctl
//	128   4  ack         anyone  futex word for the answer of a runtime
//
// A reader of tensors does: s = load-acquire(sequence), again while s is odd;
// read; fence-acquire; if sequence is not s any more, start over. Words that
// anyone writes are for processes among themselves; the daemon only adds one to
// doorbell and wakes its waiters.
const (
	ctlMagic      = 0
	ctlABI        = 8
	ctlSize       = 12
	ctlSequence   = 16
	ctlGeneration = 24
	ctlSegment    = 32
	ctlBytes      = 40
	ctlDoorbell   = 64
	ctlOpcode     = 68
	ctlRequest    = 72
)

// magic reads "VBOOTCTL" in memory.
const magic = uint64('V') | 'B'<<8 | 'O'<<16 | 'O'<<24 | 'T'<<32 | 'C'<<40 | 'T'<<48 | 'L'<<56

// control is the page of one model.
type control struct {
	*shm.Page

	mu      sync.Mutex // guards the page and all below
	pending int        // changes that have begun and not ended
	closed  bool
}

// controlName is the file of a model's page: a path can be longer than a name.
func controlName(p string) string {
	sum := sha256.Sum256([]byte(p))
	return hex.EncodeToString(sum[:])
}

// openControl makes the page, or takes over the one that readers of a daemon
// that died still have mapped.
func openControl(store *shm.Store, p string) (*control, error) {
	page, err := store.Control.Page(controlName(p))
	if err != nil {
		return nil, err
	}
	c := &control{Page: page}
	c.Store64(ctlGeneration, 0) // an earlier daemon may have counted further
	c.Store64(ctlMagic, magic)
	c.Store32(ctlABI, 1)
	c.Store32(ctlSize, shm.PageSize)
	if c.Load64(ctlSequence)%2 == 1 { // it died in a commit, which recovery has completed
		c.Add64(ctlSequence, 1)
	}
	return c, nil
}

// begin makes readers wait.
func (c *control) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending++; c.pending == 1 {
		c.Add64(ctlSequence, 1) // not a store: the bytes that follow must not be seen before it
	}
}

// end lets readers go on, with a generation and its segment, and wakes who waits.
// Changes may overlap; the last end counts, and generations only rise.
func (c *control) end(gen, ino uint64, size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	if gen >= c.Load64(ctlGeneration) {
		c.Store64(ctlGeneration, gen)
		c.Store64(ctlSegment, ino)
		c.Store64(ctlBytes, uint64(size))
	}
	if c.pending--; c.pending == 0 {
		c.Add64(ctlSequence, 1)
	}
	c.Wake(ctlDoorbell)
}

// interrupt rings with an opcode.
func (c *control) interrupt(opcode uint32, request uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.Store32(ctlOpcode, opcode)
	c.Store64(ctlRequest, request)
	c.Wake(ctlDoorbell)
}

// close unmaps the page.
func (c *control) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.Page.Close()
}
