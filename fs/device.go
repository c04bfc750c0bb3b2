package fs

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Numbers of the requests that the loop itself looks at (linux/fuse.h).
const (
	opLookup      = 1
	opForget      = 2
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opInterrupt   = 36
	opPoll        = 40
	opBatchForget = 42
)

// strange is a name, as it lies in a request, that go-fuse shows in the root by itself:
// an inode that FS does not know. Its own loop needs that, ours does not.
var strange = []byte(".go-fuse-epoll-hack\x00")

// Readers is how many threads wait for a request at most. One always does; more save
// starting a goroutine when requests come close together. Go counts them as running
// for a while: a program that serves should allow as many more of them (GOMAXPROCS).
const Readers = 4

// device is the connection to the kernel and the loop that serves it.
//
// Each loop reads a request and answers it before it reads the next. While no other
// loop waits for a request a further one is started, so a request that takes long
// delays none. Reads, opens, commands and what has to do with waiting are answered
// here; all others are taken apart by go-fuse, which calls the methods of FS.
type device struct {
	fs     *FS
	log    *logrus.Logger
	panics func(any) fuse.Status
	proto  *fuse.ProtocolServer
	file   *os.File
	conn   syscall.RawConn // counts uses of file, so that closing it never hits another descriptor

	minor uint32 // of the protocol, as the kernel said
	flags uint64 // capabilities that both sides have

	buffers buffers
	covered covered
	idle    atomic.Int32
	loops   sync.WaitGroup

	mu    sync.Mutex // guards all below
	calls map[uint64]*call
	dead  bool // the connection has ended: no request waits any more
}

// connect takes over the descriptor of a fresh mount and agrees with the kernel on
// what both can do. Requests are answered from serve on.
func connect(f *FS, fd int, log *logrus.Logger) (*device, error) {
	d := &device{fs: f, log: log, panics: panicHandler(log), calls: map[uint64]*call{}}
	d.file = os.NewFile(uintptr(fd), "/dev/fuse")
	d.proto = fuse.NewProtocolServer(f, d.options())
	var err error
	if d.conn, err = d.file.SyscallConn(); err == nil {
		err = d.greet()
	}
	if err != nil {
		d.file.Close()
		return nil, err
	}
	return d, nil
}

func (d *device) options() *fuse.MountOptions {
	return &fuse.MountOptions{
		Name:              fsType,
		MaxWrite:          maxReply,
		ExtraCapabilities: fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_DIRECT_IO_ALLOW_MMAP,
		PanicHandler:      d.panics,
		Logger:            log.New(debugWriter{d.log}, "", 0),
	}
}

// greet answers INIT, which is the first request.
func (d *device) greet() error {
	b, err := d.buffers.get()
	if err != nil {
		return err
	}
	defer d.buffers.put(b)
	n, err := d.receive(b)
	if err != nil {
		return fmt.Errorf("/dev/fuse: %w", err)
	}
	d.minor = (*fuse.InitIn)(unsafe.Pointer(&b[0])).Minor
	out := room(b, n)
	d.relay(b, n)
	h, init := (*fuse.OutHeader)(unsafe.Pointer(&out[0])), (*fuse.InitOut)(unsafe.Pointer(&out[sizeOut]))
	if h.Status != 0 {
		return fmt.Errorf("the kernel's protocol: %w", unix.Errno(-h.Status))
	}
	d.flags = uint64(init.Flags) | uint64(init.Flags2)<<32
	return nil
}

// serve answers requests until the file system is unmounted.
func (d *device) serve() {
	d.start()
	d.loops.Wait()
	d.file.Close()
	d.buffers.close()
	d.covered.close()
}

func (d *device) start() {
	d.loops.Add(1)
	go d.loop()
}

func (d *device) loop() {
	defer d.loops.Done()
	b, err := d.buffers.get()
	if err != nil {
		d.log.WithError(err).Error("no memory for requests")
		return
	}
	defer d.buffers.put(b)
	for {
		if !d.wanted() {
			return
		}
		n, err := d.receive(b)
		alone := d.idle.Add(-1) == 0
		if err != nil {
			d.end(err)
			return
		}
		if alone && !forgets(b) { // the kernel sends any number of those without waiting
			d.start()
		}
		d.handle(b, n)
	}
}

// wanted has a free loop count as waiting for a request, unless enough others wait.
// While it finds out it counts as well, so those may all have got a request and have
// left the next one to it.
func (d *device) wanted() bool {
	for d.idle.Add(1) > Readers {
		if d.idle.Add(-1) > 0 {
			return false
		}
	}
	return true
}

func header(b []byte) *fuse.InHeader { return (*fuse.InHeader)(unsafe.Pointer(&b[0])) }

func forgets(b []byte) bool {
	op := header(b).Opcode
	return op == opForget || op == opBatchForget
}

// receive waits for a request.
func (d *device) receive(b []byte) (n int, err error) {
	for {
		if closed := d.conn.Control(func(fd uintptr) { n, err = unix.Read(int(fd), b) }); closed != nil {
			return 0, closed
		}
		switch {
		case err == unix.EINTR, err == unix.EAGAIN:
		case err == unix.ENOENT: // the request was taken back while it was read
		case err == nil && n < int(unsafe.Sizeof(fuse.InHeader{})):
			return 0, unix.EIO
		default:
			return n, err
		}
	}
}

// end lets go of all requests that wait, for the connection has ended.
func (d *device) end(err error) {
	if !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ECONNABORTED) {
		d.log.WithError(err).Error("/dev/fuse")
	}
	d.mu.Lock()
	d.dead = true
	var left []*call
	for _, c := range d.calls {
		left = append(left, c)
	}
	d.mu.Unlock()
	for _, c := range left {
		c.interrupt()
	}
}

// handle answers the request in b[:n].
func (d *device) handle(b []byte, n int) {
	h := header(b)
	defer func(unique uint64) {
		if v := recover(); v != nil {
			d.forget(unique)
			d.answer(unique, d.panics(v))
		}
	}(h.Unique)
	switch {
	case h.Opcode == opRead:
		d.read((*fuse.ReadIn)(unsafe.Pointer(h)), room(b, n))
	case h.Opcode == opOpen:
		d.open((*fuse.OpenIn)(unsafe.Pointer(h)))
	case h.Opcode == opWrite && d.command((*fuse.WriteIn)(unsafe.Pointer(h)), b[unsafe.Sizeof(fuse.WriteIn{}):n]):
	case h.Opcode == opPoll:
		d.poll((*pollIn)(unsafe.Pointer(h)))
	case h.Opcode == opInterrupt && d.interrupt((*fuse.InterruptIn)(unsafe.Pointer(h)).Unique):
	case h.NodeId == fuse.FUSE_ROOT_ID && bytes.Contains(b[:n], strange):
		st := fuse.EPERM // as for all names that somebody would make in the root
		if h.Opcode == opLookup {
			st = fuse.ENOENT
		}
		d.answer(h.Unique, st)
	default:
		d.relay(b, n)
	}
}

// relay has go-fuse answer a request. The answer may be as long as the buffer
// allows: what go-fuse finds no room for it would cut.
func (d *device) relay(b []byte, n int) {
	unique := header(b).Unique
	out := room(b, n)
	k, st := d.proto.HandleRequest([][]byte{b[:n]}, [][]byte{out})
	switch {
	case k > 0:
		d.send(out[:k])
	case !st.Ok():
		d.answer(unique, st)
	}
}

// forget drops a request that is answered.
func (d *device) forget(unique uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.calls, unique)
}

// interrupt ends the wait of a request, if the loop knows it.
func (d *device) interrupt(unique uint64) bool {
	d.mu.Lock()
	c := d.calls[unique]
	d.mu.Unlock()
	if c == nil {
		return false
	}
	c.interrupt()
	return true
}

const sizeOut = int(unsafe.Sizeof(fuse.OutHeader{}))

// bytesOf is a value as it lies in memory.
func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// answer sends a status, or with OK the parts of an answer.
func (d *device) answer(unique uint64, st fuse.Status, parts ...[]byte) {
	h := fuse.OutHeader{Length: uint32(sizeOut), Status: -int32(st), Unique: unique}
	iov := make([][]byte, 1, 4)
	if st.Ok() {
		for _, p := range parts {
			if len(p) > 0 {
				h.Length += uint32(len(p))
				iov = append(iov, p)
			}
		}
	}
	iov[0] = bytesOf(&h)
	d.send(iov...)
}

// send passes an answer to the kernel. There is nobody to tell when it does not
// want it any more.
func (d *device) send(iov ...[]byte) {
	if err := d.write(iov...); err != nil && !errors.Is(err, unix.ENOENT) {
		d.log.WithError(err).Debug("an answer was not taken")
	}
}

func (d *device) write(iov ...[]byte) (err error) {
	closed := d.conn.Control(func(fd uintptr) {
		if len(iov) == 1 {
			_, err = unix.Write(int(fd), iov[0])
		} else {
			_, err = unix.Writev(int(fd), iov)
		}
	})
	return errors.Join(closed, err)
}
