package shm

import (
	"math"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PageSize is the size of a shared page in bytes, on every machine.
const PageSize = 4096

// Page is one page of shared memory that processes change with atomic
// operations and wake each other through. Its owner calls Close after the last
// use. Offsets are in bytes and must be aligned to the size of the word.
type Page struct {
	Node *Node // the file behind it; owned
	b    []byte
}

// Page makes or opens a page file in dir.
func (n *Node) Page(name string) (*Page, error) {
	f, err := n.Lookup(name)
	made := err == unix.ENOENT
	if made {
		f, err = n.Create(name, 0o600, nil)
	}
	if err != nil {
		return nil, err
	}
	if f.Type != unix.S_IFREG {
		f.Close()
		return nil, unix.EINVAL
	}
	p, err := mapPage(f)
	if err != nil {
		f.Close()
		if made {
			_ = n.Unlink(name) // there was none before
		}
	}
	return p, err
}

func mapPage(f *Node) (*Page, error) {
	if err := f.Truncate(PageSize); err != nil {
		return nil, err
	}
	fd, err := f.File()
	if err != nil {
		return nil, err
	}
	b, err := unix.Mmap(fd, 0, PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	if err := f.reserve(b); err != nil {
		_ = unix.Munmap(b)
		return nil, err
	}
	return &Page{Node: f, b: b}, nil
}

// reserve makes sure that storing to the mapped page cannot fail later. Through a
// mapping that wants no huge pages it gets a small one also while Store.Hurry asks
// for huge ones: clearing 2 MiB for it can take milliseconds.
func (n *Node) reserve(b []byte) error {
	_ = unix.Madvise(b, unix.MADV_NOHUGEPAGE) // refused by kernels that have none
	small := unix.Madvise(b, unix.MADV_POPULATE_WRITE) == nil
	if err := n.Allocate(0, 0, PageSize); err != nil {
		return err
	}
	if !small {
		n.Trim() // it may be a huge page all the same
	}
	return nil
}

// Close unmaps the page; its file stays.
func (p *Page) Close() {
	_ = unix.Munmap(p.b)
	p.Node.Close()
}

func (p *Page) w64(off int) *uint64 { return (*uint64)(unsafe.Pointer(&p.b[off])) }
func (p *Page) w32(off int) *uint32 { return (*uint32)(unsafe.Pointer(&p.b[off])) }

// Load64 and the functions below are sequentially consistent atomic operations.
func (p *Page) Load64(off int) uint64 { return atomic.LoadUint64(p.w64(off)) }

// Store64 stores a 64-bit word.
func (p *Page) Store64(off int, v uint64) { atomic.StoreUint64(p.w64(off), v) }

// Add64 adds to a 64-bit word.
func (p *Page) Add64(off int, v uint64) { atomic.AddUint64(p.w64(off), v) }

// Load32 loads a 32-bit word.
func (p *Page) Load32(off int) uint32 { return atomic.LoadUint32(p.w32(off)) }

// Store32 stores a 32-bit word.
func (p *Page) Store32(off int, v uint32) { atomic.StoreUint32(p.w32(off), v) }

// Wake adds one to the 32-bit word at off and wakes every process that waits on
// it with FUTEX_WAIT (not FUTEX_PRIVATE: the page is shared).
func (p *Page) Wake(off int) {
	w := p.w32(off)
	atomic.AddUint32(w, 1)
	const futexWake = 1
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(w)), futexWake, math.MaxInt32, 0, 0, 0)
}
