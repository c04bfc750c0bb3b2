package shm

import (
	"io"
	"math"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// ReadAt is pread until p is full or the file ends.
func (n *Node) ReadAt(p []byte, off int64) (int, error) {
	fd, err := n.File()
	if err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		k, err := unix.Pread(fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		if k == 0 {
			return done, io.EOF
		}
		done += k
	}
	return done, nil
}

// Quiet opens a regular file for reading without a trace in its access time. The
// caller closes it.
func (n *Node) Quiet() (*os.File, error) {
	fd, err := unix.Open(n.magic(), unix.O_RDONLY|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), n.magic()), nil
}

// WriteAt is pwrite of all of p. A store without a tmpfs of its own answers
// ENOSPC before the limit is passed.
func (n *Node) WriteAt(p []byte, off int64) (int, error) {
	fd, err := n.File()
	if err != nil {
		return 0, err
	}
	done := 0
	err = n.grow(int64(len(p)), func() error {
		for done < len(p) {
			k, err := unix.Pwrite(fd, p[done:], off+int64(done))
			if err != nil && err != unix.EINTR {
				return err
			}
			done += max(k, 0)
		}
		return nil
	})
	return done, err
}

// grow runs an operation that may allocate up to want bytes and keeps the count
// true afterwards: what the file really occupies is what it is charged for.
func (n *Node) grow(want int64, op func() error) error {
	if n.s.Private {
		return op()
	}
	n.mu.Lock() // the difference of two stats needs one writer at a time
	defer n.mu.Unlock()
	if err := n.s.charge(want); err != nil {
		return err
	}
	before := n.blocks()
	err := op()
	n.s.used.Add(n.blocks() - before - want)
	return err
}

func (n *Node) blocks() int64 {
	st, err := n.Stat()
	if err != nil {
		return 0
	}
	return st.Blocks * 512
}

// Truncate sets the size.
func (n *Node) Truncate(size int64) error {
	fd, err := n.File()
	if err != nil {
		return err
	}
	return n.grow(0, func() error { return unix.Ftruncate(fd, size) })
}

// Allocate is fallocate with its modes.
func (n *Node) Allocate(mode uint32, off, length int64) error {
	fd, err := n.File()
	if err != nil {
		return err
	}
	want := length
	if mode&unix.FALLOC_FL_PUNCH_HOLE != 0 {
		want = 0
	}
	return n.grow(want, func() error { return unix.Fallocate(fd, mode, off, length) })
}

// Seek finds data or a hole (SEEK_DATA, SEEK_HOLE) at or after off.
func (n *Node) Seek(off int64, whence int) (int64, error) {
	fd, err := n.File()
	if err != nil {
		return 0, err
	}
	return unix.Seek(fd, off, whence)
}

// Trim gives back the part of a huge page that lies beyond the end of the file,
// if the file has more memory than bytes. Its times stay.
func (n *Node) Trim() {
	const huge = 2 << 20
	st, err := n.Stat()
	if err != nil || !n.s.Private || n.Type != unix.S_IFREG {
		return
	}
	end := (st.Size + 4095) &^ 4095
	if tail := (st.Size + huge - 1) &^ (huge - 1); end < tail && st.Blocks*512 > end {
		_ = n.Allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, end, tail-end)
		_ = n.Utimes([2]unix.Timespec{st.Atim, st.Mtim})
	}
}

// Copy copies length bytes from src into n without passing them through the
// process; it stops early at the end of src.
func (n *Node) Copy(src *Node, srcOff, off, length int64) (int64, error) {
	in, err := src.File()
	if err != nil {
		return 0, err
	}
	return n.CopyFrom(in, srcOff, off, length)
}

// Overwrite is Copy to where n has memory already: the limit does not matter.
func (n *Node) Overwrite(src *Node, srcOff, off, length int64) (int64, error) {
	in, err := src.File()
	if err != nil {
		return 0, err
	}
	return n.copyFrom(in, srcOff, off, length, 0)
}

// CopyFrom is Copy from a file outside the store.
func (n *Node) CopyFrom(in int, srcOff, off, length int64) (done int64, err error) {
	return n.copyFrom(in, srcOff, off, length, min(length, math.MaxInt64/2))
}

// copyFrom is CopyFrom that may allocate up to want bytes.
func (n *Node) copyFrom(in int, srcOff, off, length, want int64) (done int64, err error) {
	out, err := n.File()
	if err != nil {
		return 0, err
	}
	err = n.grow(want, func() error {
		for done < length {
			a, b := srcOff+done, off+done
			k, err := unix.CopyFileRange(in, &a, out, &b, int(min(length-done, 1<<30)), 0)
			if err == unix.EXDEV || err == unix.EOPNOTSUPP {
				k, err = copyBuffered(in, a, out, b, length-done)
			}
			if err != nil && err != unix.EINTR {
				return err
			}
			if k == 0 && err == nil {
				return nil
			}
			done += int64(max(k, 0))
		}
		return nil
	})
	n.Trim()
	return done, err
}

// buffers are for copyBuffered.
var buffers = sync.Pool{New: func() any { return new([1 << 20]byte) }}

// copyBuffered moves up to 1 MiB where the kernel cannot copy between the two
// file systems by itself.
func copyBuffered(in int, inOff int64, out int, outOff, length int64) (int, error) {
	b := buffers.Get().(*[1 << 20]byte)
	defer buffers.Put(b)
	buf := b[:min(length, int64(len(b)))]
	k, err := unix.Pread(in, buf, inOff)
	if err != nil || k == 0 {
		return 0, err
	}
	return unix.Pwrite(out, buf[:k], outOff)
}

// Mapping is a read-only shared mapping of a whole file. Its owner calls Unmap
// when no slice of Bytes is used any more.
type Mapping struct{ Bytes []byte }

// Map maps the file as it is now. An empty file maps to no bytes.
func (n *Node) Map() (*Mapping, error) {
	fd, err := n.File()
	if err != nil {
		return nil, err
	}
	size := n.Size()
	if size == 0 {
		return &Mapping{}, nil
	}
	b, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return &Mapping{Bytes: b}, nil
}

// Unmap ends the mapping.
func (m *Mapping) Unmap() {
	if m.Bytes != nil {
		_ = unix.Munmap(m.Bytes)
		m.Bytes = nil
	}
}

// Dirent is one name of a directory. Off is where the next one begins.
type Dirent struct {
	Ino  uint64
	Off  int64
	Type uint32 // S_IF bits
	Name string
}

// Dir is an open directory. It owns its descriptor until Close.
type Dir struct{ fd int }

// OpenDir opens a directory for reading.
func (n *Node) OpenDir() (*Dir, error) {
	fd, err := unix.Openat(n.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &Dir{fd}, nil
}

// Close closes the directory.
func (d *Dir) Close() { unix.Close(d.fd) }

// Sync is fsync of the directory.
func (d *Dir) Sync() error { return unix.Fsync(d.fd) }

// Read returns some entries from offset off on, none at the end. One goroutine at a time.
func (d *Dir) Read(off int64) ([]Dirent, error) {
	if _, err := unix.Seek(d.fd, off, unix.SEEK_SET); err != nil {
		return nil, err
	}
	buf := make([]byte, 8<<10)
	k, err := unix.Getdents(d.fd, buf)
	if err != nil {
		return nil, err
	}
	return parseDirents(buf[:k]), nil
}

// Names lists the whole directory without . and ..
func (n *Node) Names() ([]Dirent, error) {
	d, err := n.OpenDir()
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var all []Dirent
	for off := int64(0); ; {
		ents, err := d.Read(off)
		if err != nil || len(ents) == 0 {
			return all, err
		}
		for _, e := range ents {
			if off = e.Off; e.Name != "." && e.Name != ".." {
				all = append(all, e)
			}
		}
	}
}
