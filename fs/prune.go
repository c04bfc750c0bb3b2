package fs

import (
	"encoding/binary"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"vbootfs/vectorboot"
)

// A file that the kernel remembers costs this process a descriptor, and the kernel
// remembers as long as it has memory. Long before the descriptors run out, it is
// asked to forget what nobody uses; it looks up again what it wants later.

// pruneMinor is the version of the protocol (7.x) from which on it can be asked.
const pruneMinor = 45

const notifyPrune = -9 // FUSE_NOTIFY_PRUNE of linux/fuse.h; negative as in go-fuse

// pruning is when to ask. All is guarded by FS.mu.
type pruning struct {
	limit int           // of files of the store that are known
	at    int           // ask when so many are; more than limit when asking did not help
	files int           // are known now
	busy  chan struct{} // somebody asks until it is closed; nil when nobody does
}

// newPruning leaves a part of the descriptors to everything else.
func newPruning() pruning {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		l.Cur = 1024
	}
	n := int(min(l.Cur, 1<<30)) / 2
	return pruning{limit: n, at: n}
}

// more counts a file that became known, and says whether the kernel has to be
// asked; whoever hears that must call prune.
func (p *pruning) more() bool {
	p.files++
	if p.busy != nil || p.files <= p.at {
		return false
	}
	p.busy = make(chan struct{})
	return true
}

// wait is what a request has to wait for so that it does not take descriptors
// faster than they come back, or nil.
func (p *pruning) wait() <-chan struct{} {
	if p.files > p.limit+p.limit/2 {
		return p.busy
	}
	return nil
}

// less counts a file that was forgotten.
func (p *pruning) less() {
	p.files--
	if p.files < p.limit {
		p.at = p.limit
	}
}

// prune asks the kernel to forget half of the files that have no handle, those that
// it has known for longest.
func (f *FS) prune() {
	f.mu.Lock()
	var idle []uint64
	for id, n := range f.nodes {
		if n.live != nil && n.holds == 0 {
			idle = append(idle, id)
		}
	}
	f.mu.Unlock()
	slices.Sort(idle)
	idle = idle[:len(idle)/2]
	slices.Reverse(idle) // what is in a directory goes before it
	f.dev.forgetNodes(idle)
	f.mu.Lock()
	f.pruning.at = max(f.pruning.limit, f.pruning.files+f.pruning.limit/8)
	close(f.pruning.busy)
	f.pruning.busy = nil
	f.mu.Unlock()
}

// model is the path of the model of which a row holds a generation; false for others.
func (n *node) model() (string, bool) {
	switch {
	case n.live != nil || n.ent.At.Gen == nil:
		return "", false
	case n.ent.At.Path == "": // of the active model
		return n.ent.At.Gen.Path, true
	}
	return n.ent.At.Path, true
}

// forgetStale makes the kernel forget what it remembers of a model's earlier
// segments: each such row, and the file, would keep one in memory.
func (f *FS) forgetStale(p string) {
	ids := f.markStale(p)
	slices.Reverse(ids) // what is in a directory goes before it
	f.dev.forgetNodes(ids)
}

// markStale notes which nodes are of an earlier segment, and returns those that
// nobody has open, in order. Of several changes at once, the last to mark knows of all.
func (f *FS) markStale(p string) []uint64 {
	f.marking.Lock()
	defer f.marking.Unlock()
	cur := f.rt.Acquire(p)
	if cur != nil {
		defer cur.Release()
	}
	idle := map[uint64]bool{}
	f.mu.Lock()
	for id, n := range f.ofModel[p] {
		g := n.ent.At.Gen
		if n.stale = !sameSegment(cur, g); !n.stale {
			continue
		}
		idle[id] = n.holds == 0
		if g.Seg == nil {
			continue
		}
		if file := f.byKey[g.Seg.Ino]; file != nil {
			idle[file.id] = file.holds == 0
		}
	}
	f.mu.Unlock()
	maps.DeleteFunc(idle, func(_ uint64, is bool) bool { return !is })
	return slices.Sorted(maps.Keys(idle))
}

// sameSegment says whether two generations, of which the first may be nil, have
// the same bytes in memory.
func sameSegment(a, b *vectorboot.Generation) bool {
	switch {
	case a == nil:
		return false
	case a.Seg == nil || b.Seg == nil: // a model in several files
		return a.N == b.N
	}
	return a.Seg.Ino == b.Seg.Ino
}

// forgetNodes makes the kernel drop inodes that no program uses. It waits for nobody.
func (d *device) forgetNodes(ids []uint64) {
	if d.minor < pruneMinor {
		return
	}
	for part := range slices.Chunk(ids, 512) {
		b := binary.NativeEndian.AppendUint32(nil, uint32(len(part)))
		b = append(b, make([]byte, 12)...) // reserved
		for _, id := range part {
			b = binary.NativeEndian.AppendUint64(b, id)
		}
		d.notify(notifyPrune, b)
	}
}
