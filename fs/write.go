package fs

import (
	"context"
	"maps"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vbootfs/shm"
	"vbootfs/vectorboot"
)

// bg stands for work that is done to its end whatever the caller does.
var bg = context.Background()

// pathOf is the path below output/ under which a live file is, or will be, shown.
func (f *FS) pathOf(n *node) (string, bool) {
	if s := n.file.stage; s != nil {
		return s.path()
	}
	st, err := n.live.Stat()
	if err != nil || st.Nlink == 0 {
		return "", false
	}
	if at := n.at.Load(); at != nil && st.Nlink > 1 { // which of its names was meant?
		if d, ok := at.dir.live.Path(); ok {
			if c, err := f.store.Live.Walk(path.Join(d, at.name)); err == nil {
				same := c.Ino == n.live.Ino
				c.Close()
				if same {
					return path.Join(d, at.name), true
				}
			}
		}
	}
	return n.live.Path()
}

// writing counts a writer in. It reports whether the file counts as a large one.
func (f *FS) writing(n *node) (hurry bool) {
	n.file.mu.Lock()
	n.file.writers++
	p, ok := f.pathOf(n)
	n.file.mu.Unlock()
	if s := f.rt.Source(); s != nil {
		s.Dirty(n.live)
	}
	if !ok {
		return false
	}
	if hurry = large(path.Base(p)); hurry {
		f.store.Hurry(1)
	}
	if vectorboot.Loadable(p) && !f.rt.Holds(n.live.Ino) {
		f.tell(f.rt.Receive(p, n.live))
	}
	return hurry
}

// large reports whether a file of this name is likely to become a model: one
// that is, or has the name of one with what programs add to it on the way
// (.a.gguf.XXXXXX, a.gguf.part).
func large(base string) bool {
	if vectorboot.Loadable(base) {
		return true
	}
	ext := path.Ext(base)
	return strings.Contains(base, ".gguf") && (base[0] == '.' || ext == ".part" || ext == ".tmp" || ext == ".incomplete")
}

// tell passes changes on to the kernel. No lock is held.
func (f *FS) tell(changes []vectorboot.Change) {
	for _, c := range changes {
		f.changed(c)
	}
	for _, c := range changes {
		c.Told()
	}
}

// touch prepares a file for a change of its bytes.
func (f *FS) touch(n *node) error {
	n.file.mu.Lock()
	defer n.file.mu.Unlock()
	if s := n.file.stage; s != nil && s.copy {
		s.dirty = true
	}
	return f.fillLocked(n)
}

// truncate sets the size of a file that no reader relies on.
func (f *FS) truncate(n *node, size int64) error {
	if f.rt.Fixed(n.live) {
		return f.truncateFixed(n, size)
	}
	if src := f.rt.Source(); src != nil && src.IsCold(n.live) {
		if size > 0 {
			if err := f.rt.Warm(bg, n.live); err != nil {
				return err
			}
		} else {
			src.Thaw(n.live)
		}
	}
	if err := f.touch(n); err != nil {
		return err
	}
	return n.live.Truncate(size)
}

// truncateFixed cuts a file whose bytes others rely on: never a model, and an
// ordinary file that was one by way of a copy.
func (f *FS) truncateFixed(n *node, size int64) error {
	if size == n.live.Size() {
		return nil
	}
	p, ok := f.pathOf(n)
	if !ok || f.rt.Holds(n.live.Ino) {
		return unix.ETXTBSY
	}
	name := f.store.StageName()
	c, err := f.store.CreateLike(name, n.live)
	if err != nil {
		return err
	}
	defer c.Close()
	defer f.store.Stage.Unlink(name) // gone already when it took the name
	if _, err := c.Copy(n.live, 0, 0, min(size, n.live.Size())); err != nil {
		return err
	}
	if err := c.Truncate(size); err != nil {
		return err
	}
	dir, err := f.store.Live.Walk(path.Dir(p))
	if err != nil {
		return err
	}
	defer dir.Close()
	f.rt.Names.Lock()
	err = f.store.Stage.Rename(name, dir, path.Base(p), 0)
	f.rt.Names.Unlock()
	if err == nil {
		f.mark(p)
		f.forget(nameIn{dir.Ino, path.Base(p)})
	}
	return err
}

// Flush is close(2): here a writer learns whether what it wrote is a model. It
// can come several times for one open file.
func (f *FS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h := f.handle(in.Fh)
	if h.inherited(in.Pid) {
		return fuse.OK
	}
	defer h.flushed()
	if h.n.live == nil {
		return f.flushRow(h)
	}
	if !h.write {
		return fuse.OK
	}
	if err := f.judge(h.n, false); err != nil {
		return status(err)
	}
	return status(f.unsaved(h.n))
}

// unsaved is why SOURCE does not have what was written to the file before, once.
func (f *FS) unsaved(n *node) error {
	src := f.rt.Source()
	if src == nil {
		return nil
	}
	n.file.mu.Lock()
	p, ok := f.pathOf(n)
	n.file.mu.Unlock()
	if !ok {
		return nil
	}
	return src.Failure(p)
}

// wrote remembers who writes through a handle, 0 if the kernel does not say.
func (h *handle) wrote(tid uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.writers == nil {
		h.writers = map[uint32]bool{}
	}
	h.writers[tid] = true
}

// inherited reports whether the process that closes a file has not written to it
// while one that has still lives: a child that was forked in the middle of a
// change, and closes what it inherited, does not end the change. Only writes that
// come through the daemon are known.
func (h *handle) inherited(closer uint32) bool {
	h.mu.Lock()
	writers := maps.Clone(h.writers)
	h.mu.Unlock()
	if closer == 0 || len(writers) == 0 || writers[closer] || writers[0] {
		return false
	}
	p, alive := processOf(closer), false
	for tid := range writers {
		q := processOf(tid)
		if q == p {
			return false
		}
		alive = alive || q != 0
	}
	return alive
}

// flushed forgets who wrote: their change has been looked at.
func (h *handle) flushed() {
	h.mu.Lock()
	h.writers = nil
	h.mu.Unlock()
}

// processOf is the process that a thread belongs to, 0 when it is gone.
func processOf(tid uint32) int {
	text, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(tid), 10) + "/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), "\nTgid:")
	line, _, _ := strings.Cut(rest, "\n")
	pid, _ := strconv.Atoi(strings.TrimSpace(line))
	return pid
}

// judge loads a file that was written, if its name makes it a model. Judged
// again, an unchanged file gets the same answer; force looks at its bytes all
// the same, for stores through a mapping leave no trace in its times.
func (f *FS) judge(n *node, force bool) error {
	changes, moved, err := f.judgement(n, force)
	f.forget(moved...)
	f.tell(changes)
	return err
}

// judgement is judge without telling anybody.
func (f *FS) judgement(n *node, force bool) (changes []vectorboot.Change, moved []nameIn, err error) {
	n.file.mu.Lock()
	defer n.file.mu.Unlock()
	p, ok := f.pathOf(n)
	now, last := stampOf(n.live), n.file.last.Load()
	if !ok {
		return nil, nil, nil
	}
	if !vectorboot.Loadable(p) {
		return f.showPlain(n, p, force)
	}
	if now.size == 0 {
		return nil, nil, nil
	}
	bytes := n.live
	if s := n.file.stage; s != nil && s.copy {
		if !s.dirty {
			return nil, nil, said(last)
		}
		c, name, err := f.snapshot(n)
		if err != nil {
			return nil, nil, err
		}
		defer c.Close()
		defer f.store.Stage.Unlink(name) // gone already if it was shown
		return f.decide(n, p, c, name, now)
	} else if last != nil && last.of == now && !(force && last.err != nil) {
		return nil, nil, last.err
	}
	name := ""
	if n.file.stage != nil {
		name = n.file.stage.file
	}
	return f.decide(n, p, bytes, name, now)
}

func said(v *verdict) error {
	if v == nil {
		return nil
	}
	return v.err
}

// decide parses the bytes and shows or rejects them. name is their name in
// Store.Stage, "" if they are at p already. Caller holds file.mu.
func (f *FS) decide(n *node, p string, bytes *shm.Node, name string, now stamp) ([]vectorboot.Change, []nameIn, error) {
	g, err := vectorboot.Judge(bytes)
	before := n.file.last.Swap(&verdict{now, err})
	if s := n.file.stage; s != nil {
		s.dirty = false
	}
	if err != nil {
		if before != nil && before.of == now && before.err != nil && before.err.Error() == err.Error() {
			return nil, nil, err // known
		}
		return f.rt.Fail(p, err), f.keepRejected(n, bytes), err
	}
	return f.show(n, p, g, name)
}

// keepRejected gives refused bytes a name beside the model that they would have replaced.
func (f *FS) keepRejected(n *node, bytes *shm.Node) []nameIn {
	s := n.file.stage
	if s == nil {
		return nil
	}
	f.rt.Names.Lock()
	defer f.rt.Names.Unlock()
	_ = s.dir.Unlink(rejected(s.base))
	if err := s.dir.Link(bytes, rejected(s.base)); err != nil {
		f.log.WithError(err).Error("cannot keep rejected bytes")
		return nil
	}
	s.rejected = true
	if d, ok := s.dir.Path(); ok {
		f.mark(rejected(path.Join(d, s.base)))
	}
	return []nameIn{{s.dir.Ino, rejected(s.base)}}
}

// showPlain gives a staged file that is no model its name. It was staged only
// because the file of that name was a model once, and readers rely on its bytes.
// An empty file may be the beginning of a write; last says that nobody writes any more.
func (f *FS) showPlain(n *node, p string, last bool) ([]vectorboot.Change, []nameIn, error) {
	s := n.file.stage
	if s == nil || s.copy && !s.dirty || !last && n.live.Size() == 0 {
		return nil, nil, nil
	}
	f.rt.Names.Lock()
	defer f.rt.Names.Unlock()
	if err := f.store.Stage.Rename(s.file, s.dir, s.base, 0); err != nil {
		return nil, nil, err
	}
	moved := []nameIn{{s.dir.Ino, s.base}}
	f.rt.ClearTarget(n.live)
	n.file.stage = nil
	s.close()
	f.mark(p)
	return nil, moved, nil
}

// show makes a valid file the current generation of its name. Caller holds file.mu.
func (f *FS) show(n *node, p string, g *vectorboot.Generation, name string) ([]vectorboot.Change, []nameIn, error) {
	f.rt.Names.Lock()
	defer f.rt.Names.Unlock()
	s := n.file.stage
	if s == nil { // written in place, before anything was loaded under this name
		if again, ok := f.pathOf(n); !ok || again != p {
			g.Release()
			return nil, nil, nil // renamed or removed meanwhile; that judged it
		}
		return f.rt.Publish(p, g), nil, nil
	}
	if err := f.store.Stage.Rename(name, s.dir, s.base, 0); err != nil {
		g.Release()
		return nil, nil, err
	}
	moved := []nameIn{{s.dir.Ino, s.base}}
	if s.rejected {
		moved = append(moved, nameIn{s.dir.Ino, rejected(s.base)})
		_ = s.dir.Unlink(rejected(s.base))
		s.rejected = false
		f.mark(rejected(p))
	}
	p, _ = s.path()
	if !s.copy {
		f.rt.ClearTarget(n.live)
		n.file.stage = nil
		s.close()
	}
	f.mark(p)
	return f.rt.Publish(p, g), moved, nil
}

// mark says that SOURCE may differ at p.
func (f *FS) mark(p string) {
	if s := f.rt.Source(); s != nil {
		s.Mark(p)
	}
}

// Release ends a handle after its last close.
func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	h := f.close(in.Fh)
	if h == nil {
		return
	}
	if h.row != nil {
		f.flushRow(h) // what no close has committed
		h.row.close()
	}
	if h.dir != nil && h.dir.live.dir != nil {
		h.dir.live.dir.Close()
	}
	if h.write && h.n.live != nil {
		f.written(h)
	}
	f.unhold(h.n)
}

// written counts a writer out; the last one decides what becomes of the file.
func (f *FS) written(h *handle) {
	n := h.n
	if err := f.judge(n, true); err != nil {
		f.log.WithError(err).Warn("not loaded")
	}
	n.file.mu.Lock()
	n.file.writers--
	last := n.file.writers == 0
	p, ok := f.pathOf(n)
	unshown := last && n.file.stage != nil
	if unshown {
		f.discard(n)
	}
	n.file.mu.Unlock()
	if unshown && ok {
		f.mark(p) // SOURCE may have what fsync wrote; what is shown is true
		ok = false
	}
	if last {
		f.tell(f.rt.Forget(n.live))
	}
	if h.hurry {
		f.store.Hurry(-1)
	}
	if last && ok {
		n.live.Trim()
	}
	if last && ok {
		f.mark(p)
	}
}

// Fsync makes a file durable. A file that has no name yet is kept under the one
// it will have, or as rejected.
func (f *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	src := f.rt.Source()
	h := f.handle(in.Fh)
	if src == nil || h.n.live == nil {
		return fuse.OK
	}
	h.n.file.mu.Lock()
	p, ok := f.pathOf(h.n)
	staged := h.n.file.stage != nil && (!h.n.file.stage.copy || h.n.file.stage.dirty)
	h.n.file.mu.Unlock()
	if !ok {
		return fuse.OK
	}
	if !staged {
		return status(f.sync(h.n, p))
	}
	g, err := vectorboot.Judge(h.n.live)
	if err != nil {
		p = rejected(p)
	} else {
		g.Release()
	}
	return status(src.SyncAs(p, h.n.live))
}

// sync makes a file durable under the name that it has in the end.
func (f *FS) sync(n *node, p string) error {
	for {
		if err := f.rt.Source().Sync(p); err != nil {
			return err
		}
		now, ok := f.pathOf(n)
		if !ok || now == p {
			return nil
		}
		p = now
	}
}

// FsyncDir makes the names of a directory durable.
func (f *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n := f.node(in.NodeId)
	src := f.rt.Source()
	if src == nil || n.live == nil {
		return fuse.OK
	}
	p, ok := n.live.Path()
	if !ok {
		return fuse.OK
	}
	return status(src.SyncDir(p))
}
