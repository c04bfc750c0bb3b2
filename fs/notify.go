package fs

import (
	"errors"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// What is said to the kernel without being asked. No lock may be held: the kernel
// can need one of its own that a program holds which waits for us.

// epochMinor is the version of the protocol (7.x) from which on all names can be
// forgotten at once.
const epochMinor = 44

// entry is a name in a directory as the kernel knows them.
type entry struct {
	dir  uint64
	name string
}

// forgetNames makes the kernel look names up again. Where the kernel can, a new epoch
// begins and with it all names of the mount are old. That waits for no lock of a
// directory, where forgetting the one name would wait for whoever works in its
// directory, and that one may wait for a daemon which has just been killed: neither
// would ever end. Only while something is mounted on a name of ours, which would be
// detached with a new epoch, names are forgotten one by one.
func (d *device) forgetNames(list []entry) {
	if d.minor >= epochMinor && !d.covered.now() {
		d.notify(fuse.NOTIFY_INC_EPOCH)
		return
	}
	for _, e := range list {
		in := fuse.NotifyInvalEntryOut{Parent: e.dir, NameLen: uint32(len(e.name))}
		d.notify(fuse.NOTIFY_INVAL_ENTRY, bytesOf(&in), append([]byte(e.name), 0))
	}
}

// forgetData makes the kernel drop a range of what it has cached of a file, in
// bytes; a length of 0 means to the end.
func (d *device) forgetData(id uint64, off, length int64) {
	in := fuse.NotifyInvalInodeOut{Ino: id, Off: off, Length: length}
	d.notify(fuse.NOTIFY_INVAL_INODE, bytesOf(&in))
}

// notify sends a message. The kernel says ENOENT when it knows nothing of what is
// to be forgotten, and the connection may have ended.
func (d *device) notify(code int32, parts ...[]byte) {
	h := fuse.OutHeader{Length: uint32(sizeOut), Status: -code}
	iov := [][]byte{bytesOf(&h)}
	for _, p := range parts {
		h.Length += uint32(len(p))
		iov = append(iov, p)
	}
	err := d.write(iov...)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		d.log.WithError(err).WithField("code", code).Debug("the kernel was not told")
	}
}

// The ioctls of files that stand behind others (linux/fuse.h).
const (
	backingOpen  = 0x4010e501
	backingClose = 0x4004e502
)

// openBacking lets the kernel read, write and map a file by itself. The id is closed
// with closeBacking.
func (d *device) openBacking(fd int) (id int32, err error) {
	m := fuse.BackingMap{Fd: int32(fd)}
	closed := d.conn.Control(func(dev uintptr) {
		got, _, no := unix.Syscall(unix.SYS_IOCTL, dev, backingOpen, uintptr(unsafe.Pointer(&m)))
		if id = int32(got); no != 0 {
			err = no
		}
	})
	return id, errors.Join(closed, err)
}

func (d *device) closeBacking(id int32) {
	_ = d.conn.Control(func(dev uintptr) { // without the connection the id is gone
		unix.Syscall(unix.SYS_IOCTL, dev, backingClose, uintptr(unsafe.Pointer(&id)))
	})
}
