package fs

import (
	"io"
	"math"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
	"vbootfs/shm"
)

var errEOF = io.EOF

// file is the data side of a node: a regular live file, or a segment row.
//
// The kernel allows one backing file per inode and refuses to mix passthrough
// with cached opens of it, so how a node is opened is decided once.
type file struct {
	mu      sync.Mutex // guards all below
	decided bool
	backing atomic.Int32 // passthrough id, 0: through the daemon. Set once, with mu; read without

	writers int
	stage   *stage // not nil: the file is not shown under its name yet

	last atomic.Pointer[verdict] // also set by renames, without mu
}

// verdict is what judging a file found, and what it was about.
type verdict struct {
	of  stamp
	err error
}

// stamp tells whether a file changed since it was judged.
type stamp struct {
	size  int64
	mtime unix.Timespec
}

func stampOf(n *shm.Node) stamp {
	st, err := n.Stat()
	if err != nil {
		return stamp{}
	}
	return stamp{st.Size, st.Mtim}
}

// route decides how the node's opens go and says so in out.
func (f *FS) route(n *node, seg *shm.Node, out *fuse.OpenOut) {
	n.file.mu.Lock()
	defer n.file.mu.Unlock()
	if !n.file.decided {
		n.file.decided = true
		if f.pass && !(n.file.stage != nil && n.file.stage.copy) {
			n.file.backing.Store(f.register(seg))
		}
	}
	if n.file.backing.Load() != 0 {
		out.OpenFlags, out.BackingID = fuse.FOPEN_PASSTHROUGH, n.file.backing.Load()
	} else {
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	}
}

// register makes the kernel hold the segment's file for a node.
func (f *FS) register(seg *shm.Node) int32 {
	fd, err := seg.File()
	if err != nil {
		return 0
	}
	id, err := f.dev.openBacking(fd)
	if err != nil {
		f.log.WithError(err).Warn("this file goes through the daemon")
		return 0
	}
	return id
}

// openSegment opens model.gguf.
func (f *FS) openSegment(n *node, pid uint32, out *fuse.OpenOut) fuse.Status {
	g := n.ent.At.Gen
	if err := f.rt.WarmAll(bg, g); err != nil {
		return status(err)
	}
	if g.Seg != nil {
		f.route(n, g.Seg.Node, out)
	} else { // computed: no one file could stand behind it
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	}
	out.Fh = f.open(&handle{n: n, pid: pid, row: &rowRead{view: g}})
	return fuse.OK
}

// openFile opens a file.
func (f *FS) openFile(c *call, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := f.node(in.NodeId)
	if n.live == nil {
		return f.openRow(c, n, in, out)
	}
	return f.openLive(n, in.Flags, in.Pid, out)
}

// openLive opens a file of the output directory. A writer of a loaded model is
// sent back (ESTALE): the kernel looks the name up again, for this thread alone
// it now means a staging file, and that one is opened.
func (f *FS) openLive(n *node, flags, tid uint32, out *fuse.OpenOut) fuse.Status {
	write := flags&unix.O_ACCMODE != unix.O_RDONLY
	trunc := flags&unix.O_TRUNC != 0
	s := f.arrive(n, tid)
	if s == nil && (write || trunc) && f.rt.Fixed(n.live) {
		if err := f.redirect(n, tid, trunc); err != nil {
			return status(err)
		}
		return fuse.Status(unix.ESTALE)
	}
	if trunc && (s == nil || s.opened > 1) {
		if err := f.truncate(n, 0); err != nil {
			return status(err)
		}
	} else if err := f.rt.Warm(bg, n.live); err != nil {
		return status(err)
	}
	out.Fh = f.openData(n, tid, write, out)
	return fuse.OK
}

// openData makes the handle of an open that is allowed.
func (f *FS) openData(n *node, pid uint32, write bool, out *fuse.OpenOut) uint64 {
	f.route(n, n.live, out)
	h := &handle{n: n, pid: pid, write: write}
	if write {
		h.hurry = f.writing(n)
	}
	return f.open(h)
}

// read reads through the daemon: into buf, unless the bytes lie in memory as they are.
func (f *FS) read(c *call, h *handle, in *fuse.ReadIn, buf []byte) ([]byte, fuse.Status) {
	f.rt.Stats.Reads.Add(1)
	if b := h.mapped(int64(in.Offset), len(buf)); b != nil {
		f.rt.Stats.BytesRead.Add(int64(len(b)))
		return b, fuse.OK
	}
	var k int
	var err error
	if h.n.live != nil {
		if err = f.fill(h.n); err == nil {
			k, err = h.n.live.ReadAt(buf, int64(in.Offset))
		}
		if err == io.EOF {
			err = nil
		}
	} else {
		k, err = h.row.read(c, buf, int64(in.Offset))
	}
	if err != nil {
		return nil, status(err)
	}
	f.rt.Stats.BytesRead.Add(int64(k))
	return buf[:k], fuse.OK
}

// worthMapping is the size in bytes from which a reply straight from a mapping is
// cheaper than one that was copied first.
const worthMapping = 32 << 10

// mapped is a part of a file that lies in a mapped segment as it is; it is answered
// from there, without a copy. Should it have been cut meanwhile, the kernel finds
// out and says EIO. nil: it has to be read.
func (h *handle) mapped(off int64, n int) []byte {
	if n < worthMapping || h.row == nil || h.row.edit != nil {
		return nil
	}
	h.row.mu.Lock()
	v := h.row.view
	h.row.mu.Unlock()
	s, ok := v.(ggufview.Slicer)
	if !ok || off >= v.Size() {
		return nil
	}
	b, _ := s.Slice(off, min(int64(n), v.Size()-off))
	return b
}

// Write writes through the daemon.
func (f *FS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h := f.handle(in.Fh)
	h.wrote(in.Pid)
	if h.n.live == nil {
		return writeRow(h, in, data)
	}
	if err := f.touch(h.n); err != nil {
		return 0, status(err)
	}
	k, err := h.n.live.WriteAt(data, int64(in.Offset))
	if k > 0 {
		err = nil // a short write; the next one meets the error
	}
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		f.killSuid(h.n)
	}
	return uint32(k), status(err)
}

// killSuid drops the bits that a write by another user must not leave.
func (f *FS) killSuid(n *node) {
	st, err := n.live.Stat()
	if err != nil || st.Mode&(unix.S_ISUID|unix.S_ISGID) == 0 {
		return
	}
	mode := st.Mode &^ unix.S_ISUID
	if mode&unix.S_IXGRP != 0 {
		mode &^= unix.S_ISGID
	}
	_ = n.live.Chmod(mode)
}

// Lseek finds data and holes.
func (f *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h := f.handle(in.Fh)
	if h.n.live == nil {
		return seekRow(h, in, out)
	}
	if err := f.fill(h.n); err != nil {
		return status(err)
	}
	off, err := h.n.live.Seek(int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return status(err)
}

// seekRow sees a computed file as data without holes.
func seekRow(h *handle, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if h.row == nil {
		return fuse.EINVAL
	}
	size := uint64(h.row.view.Size())
	if in.Offset >= size {
		return fuse.Status(unix.ENXIO)
	}
	out.Offset = in.Offset
	if in.Whence == unix.SEEK_HOLE {
		out.Offset = size
	}
	return fuse.OK
}

// Fallocate reserves or punches.
func (f *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h := f.handle(in.Fh)
	if h.n.live == nil {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	if f.rt.Fixed(h.n.live) {
		return fuse.Status(unix.ETXTBSY)
	}
	if err := f.touch(h.n); err != nil {
		return status(err)
	}
	if in.Offset > math.MaxInt64 || in.Length > math.MaxInt64 {
		return fuse.Status(unix.EFBIG)
	}
	return status(h.n.live.Allocate(in.Mode, int64(in.Offset), int64(in.Length)))
}

// CopyFileRange copies between two files of the mount without passing the
// caller; at most 4 GiB - 4096 bytes a request, the reply being 32 bits.
func (f *FS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	src, dst := f.handle(in.FhIn), f.handle(in.FhOut)
	if dst.n.live == nil || src.n.live == nil && (!src.n.ent.Segment || src.n.ent.At.Gen.Seg == nil) {
		return 0, fuse.Status(unix.EXDEV) // the caller reads and writes instead
	}
	if err := f.touch(dst.n); err != nil {
		return 0, status(err)
	}
	from := src.n.live
	if from == nil {
		from = src.n.ent.At.Gen.Seg.Node
	} else if err := f.fill(src.n); err != nil {
		return 0, status(err)
	}
	length := min(in.Len, math.MaxUint32&^4095)
	if size := uint64(from.Size()); in.OffIn >= size {
		return 0, fuse.OK
	} else {
		length = min(length, size-in.OffIn)
	}
	var k int64
	err := f.rt.Still(func() (err error) {
		k, err = dst.n.live.Copy(from, int64(in.OffIn), int64(in.OffOut), int64(length))
		return err
	})
	if k > 0 {
		err = nil
	}
	return uint32(k), status(err)
}
