package fs

import (
	"errors"
	"slices"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vbootfs/fs/tree"
	"vbootfs/vectorboot"
)

// What poll(2) knows as ready, in both spellings (POLLRDNORM and POLLWRNORM).
const (
	pollRead  = unix.POLLIN | 0x40
	pollWrite = unix.POLLOUT | 0x100
)

// waiting is an open stream. A read that has to wait is kept as data until there is
// something to read, a signal takes it back, or the stream ends: it costs neither
// goroutine nor thread. mu is taken after all locks of the runtime, and no answer is
// sent under it.
type waiting struct {
	d        *device
	writable bool

	mu      sync.Mutex  // guards all below, and reading s
	s       tree.Stream // nil until it is open and once it is closed
	rest    []byte      // what a short read left over; comes first next time
	readers []parked    // in order of their arrival
	polled  bool        // the kernel wants to hear once of something to read
	poll    uint64      // how it calls the file then
}

// parked is a read that waits.
type parked struct {
	c    *call
	size int // bytes asked for
}

// reply is what a read gets.
type reply struct {
	c *call
	b []byte
	s fuse.Status
}

// newWaiting opens the stream of a row.
func newWaiting(d *device, e tree.Entry, pid uint32, writable bool) (*waiting, error) {
	w := &waiting{d: d, writable: writable}
	s, err := e.Stream(e.At, tree.Caller{PID: pid, Wake: w.wake})
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.s = s
	return w, nil
}

// read answers a read, now or later.
func (w *waiting) read(c *call, size int, wait bool) {
	if r, ok := w.begin(c, size, wait); ok {
		r.c.finish(r.s, r.b)
	}
}

// begin is the answer to a read, or keeps it for later.
func (w *waiting) begin(c *call, size int, wait bool) (reply, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.readers) == 0 {
		if b, err := w.next(size); !errors.Is(err, vectorboot.ErrWait) {
			return reply{c, b, status(err)}, true
		}
	}
	if !wait {
		return reply{c, nil, fuse.EAGAIN}, true
	}
	w.readers = append(w.readers, parked{c, size})
	if !c.onInterrupt(func() { w.leave(c) }) {
		w.readers = w.readers[:len(w.readers)-1]
		return reply{c, nil, fuse.EINTR}, true
	}
	return reply{}, false
}

// next is what can be read now. Caller holds mu.
func (w *waiting) next(size int) ([]byte, error) {
	if len(w.rest) == 0 {
		if w.s == nil {
			return nil, nil
		}
		b, err := w.s.Read(size)
		if err != nil {
			return nil, err
		}
		w.rest = b
	}
	b := w.rest[:min(size, len(w.rest))]
	w.rest = w.rest[len(b):]
	return b, nil
}

// leave takes a read back whose program got a signal.
func (w *waiting) leave(c *call) {
	w.mu.Lock()
	i := slices.IndexFunc(w.readers, func(r parked) bool { return r.c == c })
	if i >= 0 {
		w.readers = slices.Delete(w.readers, i, i+1)
	}
	w.mu.Unlock()
	if i >= 0 { // otherwise it has just been answered
		c.finish(fuse.EINTR)
	}
}

// wake answers those who wait, as far as there is something to read. Neither an answer
// nor the word to those who poll waits for anybody, so the caller may hold locks.
func (w *waiting) wake() {
	answers, told := w.serve()
	for _, r := range answers {
		r.c.finish(r.s, r.b)
	}
	if told != nil {
		w.d.notify(fuse.NOTIFY_POLL, bytesOf(told))
	}
}

func (w *waiting) serve() (answers []reply, told *uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.s == nil {
		return nil, nil
	}
	for len(w.readers) > 0 {
		r := w.readers[0]
		b, err := w.next(r.size)
		if errors.Is(err, vectorboot.ErrWait) {
			break
		}
		w.readers = slices.Delete(w.readers, 0, 1)
		answers = append(answers, reply{r.c, b, status(err)})
	}
	if w.polled && w.ready() {
		w.polled = false
		poll := w.poll
		told = &poll
	}
	return answers, told
}

// ready reports whether a read would be answered at once. Caller holds mu.
func (w *waiting) ready() bool { return len(w.rest) > 0 || w.s == nil || w.s.Ready() }

// events is what poll(2) returns. With notify the kernel hears, once, of the next
// thing to read as well: that is an edge even if there was something before.
func (w *waiting) events(poll uint64, notify bool) (events uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if notify {
		w.polled, w.poll = true, poll
	}
	if w.ready() {
		events |= pollRead
	}
	if w.writable {
		events |= pollWrite
	}
	return events
}

func (w *waiting) write(b []byte) error {
	w.mu.Lock()
	s := w.s
	w.mu.Unlock()
	return s.Write(b) // which may wake this very stream
}

// close ends the stream. Only at the end of the mount can somebody still wait.
func (w *waiting) close() {
	w.mu.Lock()
	s, left := w.s, w.readers
	w.s, w.readers = nil, nil
	w.mu.Unlock()
	s.Close()
	for _, r := range left {
		r.c.finish(fuse.EINTR)
	}
}
