package fs

import (
	"sync"

	"golang.org/x/sys/unix"
)

// Sizes in bytes. A buffer holds a request and, behind it, its answer: each of them
// has at most maxReply bytes of data and a few kilobytes around them.
const (
	around     = 64 << 10 // headers, names, the value of an extended attribute
	bufferSize = 2 * (maxReply + around)
	page       = 4096
)

// buffers are pieces of memory outside of the Go heap: the collector neither
// clears nor scans them, and only pages that were used take memory.
type buffers struct {
	mu   sync.Mutex // guards free
	free [][]byte
}

// maxFree is how many idle buffers are kept.
const maxFree = 8

func (p *buffers) get() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k := len(p.free); k > 0 {
		b := p.free[k-1]
		p.free = p.free[:k-1]
		return b, nil
	}
	return unix.Mmap(-1, 0, bufferSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
}

func (p *buffers) put(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) < maxFree {
		p.free = append(p.free, b)
		return
	}
	_ = unix.Munmap(b) // fails for no mapping of ours
}

// close gives the idle buffers back.
func (p *buffers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.free {
		_ = unix.Munmap(b)
	}
	p.free = nil
}

// room is the part of a buffer behind a request of n bytes, for its answer.
func room(b []byte, n int) []byte { return b[(n+page-1)&^(page-1):] }
