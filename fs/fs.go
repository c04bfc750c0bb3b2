// Package fs serves the tree through FUSE. Every inode is a node of one of two
// kinds: a row of fs/tree, or a file of the live store behind
// geometry_os_v7/output. Requests name nodes, and nodes hold descriptors, so no
// request ever goes through a path that may have changed.
//
//	fs.go      nodes and handles, and the requests that both kinds share
//	output.go  names in the output directory
//	attr.go    their attributes
//	file.go    data: open, read, write, passthrough
//	stage.go   files that are written beside the model they will replace
//	write.go   close: judging what was written, and showing it
//	row.go     rows of the tree that are read
//	change.go  rows that are written or wait
//	dir.go     directories
//	mount.go   mounting and the life of the daemon
//	attach.go  the system calls of mounting
//	device.go  the loop that reads the kernel's requests and answers them
//	call.go    requests that it answers itself
//	waiting.go streams: reads and polls that wait
//	buffer.go  memory for requests
//	notify.go  what the kernel is told
//	prune.go   what it is asked to forget
//	covered.go whether something is mounted on what we show
//
// Lock order: file.mu, then Runtime.Names, then FS.mu; waiting.mu after all locks of
// the runtime but those of its hubs and events; device.mu and call.mu last. FS.marking
// comes before Runtime.mu and FS.mu. None is held while the kernel is notified, for the
// kernel may wait for us meanwhile.
package fs

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"vbootfs/fs/tree"
	"vbootfs/shm"
	"vbootfs/vectorboot"
)

// Kernel cache lifetimes. Names change only through this kernel or with a
// notification; attributes of live files change under passthrough writes. A name in a
// listing that may come to mean another file is not remembered: a new epoch that
// begins while the kernel takes in the listing would leave it the old meaning. It
// brings its node along all the same, for that is what keeps the name of an open file
// whose epoch is over: looked up without a listing before, it shows as "(deleted)" in
// /proc.
const (
	nameTTL   = time.Hour
	attrTTL   = time.Second
	listedTTL = 0
)

// FS implements fuse.RawFileSystem.
type FS struct {
	fuse.RawFileSystem // answers ENOSYS for what is not below

	log    *logrus.Logger
	rt     *vectorboot.Runtime
	store  *shm.Store
	dev    *device
	pass   bool // the kernel lets us pass files through
	noPass bool // the user does not want it
	noPoll bool // see Options

	marking sync.Mutex // of stale nodes: from finding the current generation to noting it

	mu       sync.Mutex // guards all below
	nodes    map[uint64]*node
	byKey    map[any]*node
	handles  map[uint64]*handle
	staged   map[uint32]*stage // by thread: opens that were sent back to look again
	pruning  pruning
	ofModel  map[string]map[uint64]*node // rows that hold a generation, by the path of the model
	nextNode uint64
	nextFh   uint64
}

// node is an inode that the kernel knows. It lives until the kernel forgot it
// and its last handle is closed.
type node struct {
	id  uint64
	key any // inode number of a live file, or the ID of an entry

	lookups uint64 // guarded by FS.mu
	holds   int    // handles; guarded by FS.mu
	stale   bool   // a row of a model's earlier segment; guarded by FS.mu

	live *shm.Node  // a file of the store, or
	ent  tree.Entry // a row
	file file       // state of a regular live file or of a segment row

	at atomic.Pointer[place] // where a live file was last looked up
}

type place struct {
	dir  *node
	name string
}

// handle is an open file or directory.
type handle struct {
	n     *node
	pid   uint32 // who opened it
	write bool
	hurry bool     // counted in Store.Hurry
	dir   *dirRead // directories
	row   *rowRead // rows

	mu      sync.Mutex      // guards writers
	writers map[uint32]bool // threads whose writes came through the daemon since the last close
}

func newFS(rt *vectorboot.Runtime, o Options) *FS {
	f := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		log:           o.Log, rt: rt, store: rt.Store(), noPass: o.NoPass, noPoll: o.noPoll,
		nodes: map[uint64]*node{}, byKey: map[any]*node{}, handles: map[uint64]*handle{},
		staged: map[uint32]*stage{}, pruning: newPruning(), ofModel: map[string]map[uint64]*node{}, nextNode: fuse.FUSE_ROOT_ID,
	}
	root := &node{id: fuse.FUSE_ROOT_ID, key: "", ent: tree.Root(rt), lookups: 1}
	f.nodes[root.id], f.byKey[root.key] = root, root
	rt.Observe(f.changed)
	rt.SetReaders(f.readersOf)
	return f
}

func (f *FS) String() string { return "vbootfs" }

// probe learns whether the kernel lets this process pass files through.
func (f *FS) probe() {
	n, err := f.store.Stage.Tmpfile(0o600, nil)
	if err != nil {
		return
	}
	defer n.Close()
	fd, err := n.File()
	if err != nil || f.noPass || f.dev.flags&fuse.CAP_PASSTHROUGH == 0 {
		return
	}
	id, err := f.dev.openBacking(fd)
	if err != nil {
		f.log.WithError(err).Info("no passthrough: model data goes through the daemon")
		return
	}
	f.dev.closeBacking(id)
	f.pass = true
	f.rt.SetPassthrough(true)
}

// node is the inode of a request; the kernel never names one it forgot.
func (f *FS) node(id uint64) *node {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nodes[id]
}

// intern makes or finds the node of a live file and counts a lookup. It takes over n.
func (f *FS) intern(n *shm.Node, dir *node, name string) *node {
	have := f.know(&node{key: n.Ino, live: n})
	if dir != nil {
		have.at.Store(&place{dir, name})
	}
	return have
}

// internRow does the same for a row. It takes over e.
func (f *FS) internRow(e tree.Entry) *node { return f.know(&node{key: e.ID, ent: e}) }

// know returns the node of the key of n, which is n if there was none, and counts a lookup.
func (f *FS) know(n *node) *node {
	f.mu.Lock()
	have, ok := f.byKey[n.key]
	if !ok {
		have = f.add(n)
	}
	have.lookups++
	wait := f.pruning.wait()
	f.mu.Unlock()
	if ok {
		n.release()
	}
	if wait != nil {
		<-wait
	}
	return have
}

// release lets go of what the node stands for.
func (n *node) release() {
	if n.live != nil {
		n.live.Close()
	} else {
		n.ent.Close()
	}
}

// add numbers a node. Caller holds mu.
func (f *FS) add(n *node) *node {
	f.nextNode++
	n.id = f.nextNode
	f.nodes[n.id], f.byKey[n.key] = n, n
	if n.live != nil && f.pruning.more() {
		go f.prune()
	}
	if p, ok := n.model(); ok {
		if f.ofModel[p] == nil {
			f.ofModel[p] = map[uint64]*node{}
		}
		f.ofModel[p][n.id] = n
	}
	return n
}

// Forget drops lookups.
func (f *FS) Forget(id, count uint64) {
	f.mu.Lock()
	n := f.nodes[id]
	if n == nil || n.id == fuse.FUSE_ROOT_ID {
		f.mu.Unlock()
		return
	}
	n.lookups -= min(count, n.lookups)
	f.drop(n)
}

// drop ends a node that nobody uses and unlocks mu.
func (f *FS) drop(n *node) {
	dead := n.lookups == 0 && n.holds == 0 && f.nodes[n.id] == n
	if dead {
		delete(f.nodes, n.id)
		if f.byKey[n.key] == n {
			delete(f.byKey, n.key)
		}
		if n.live != nil {
			f.pruning.less()
		}
		if p, ok := n.model(); ok {
			if delete(f.ofModel[p], n.id); len(f.ofModel[p]) == 0 {
				delete(f.ofModel, p)
			}
		}
	}
	f.mu.Unlock()
	if !dead {
		return
	}
	if n.file.backing.Load() != 0 {
		f.dev.closeBacking(n.file.backing.Load())
	}
	n.release()
}

// open registers a handle.
func (f *FS) open(h *handle) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nextFh++
	f.handles[f.nextFh] = h
	h.n.holds++
	return f.nextFh
}

func (f *FS) handle(fh uint64) *handle {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.handles[fh]
}

// close ends a handle.
func (f *FS) close(fh uint64) *handle {
	f.mu.Lock()
	h := f.handles[fh]
	delete(f.handles, fh)
	f.mu.Unlock()
	return h
}

// unhold lets the node of a closed handle go.
func (f *FS) unhold(n *node) {
	f.mu.Lock()
	n.holds--
	last := n.stale && n.holds == 0
	f.drop(n)
	if last {
		p, _ := n.model()
		f.forgetStale(p)
	}
}

// releaseAll closes what the kernel did not release before the mount ended.
func (f *FS) releaseAll() {
	f.mu.Lock()
	var open []uint64
	for fh := range f.handles {
		open = append(open, fh)
	}
	f.mu.Unlock()
	for _, fh := range open {
		f.Release(nil, &fuse.ReleaseIn{Fh: fh})
	}
	f.mu.Lock()
	nodes := f.nodes
	f.nodes, f.byKey = map[uint64]*node{}, map[any]*node{}
	f.mu.Unlock()
	for _, n := range nodes {
		n.file.mu.Lock()
		f.discard(n) // its thread never came back
		n.file.mu.Unlock()
		n.release()
	}
}

// Lookup finds a name.
func (f *FS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	p := f.node(h.NodeId)
	if len(name) > unix.NAME_MAX {
		return fuse.Status(unix.ENAMETOOLONG)
	}
	if p.live != nil {
		return f.lookupLive(p, h.Pid, name, out)
	}
	e, err := p.ent.Lookup(name)
	if err != nil {
		return status(err)
	}
	if e.Output {
		e.Close()
		n, err := f.store.Live.Dup()
		if err != nil {
			return status(err)
		}
		return f.entry(f.intern(n, nil, ""), nameTTL, out)
	}
	ttl := ttlOf(e)
	return f.entry(f.internRow(e), ttl, out)
}

// entry answers a lookup; the node's lookup was counted already.
func (f *FS) entry(n *node, ttl time.Duration, out *fuse.EntryOut) fuse.Status {
	var attr fuse.AttrOut
	if st := f.attr(n, &attr); !st.Ok() {
		f.Forget(n.id, 1)
		return st
	}
	out.NodeId, out.Generation, out.Attr = n.id, 1, attr.Attr
	out.SetEntryTimeout(ttl)
	out.SetAttrTimeout(attr.Timeout())
	return fuse.OK
}

// attr fills in what stat shows and for how long it holds.
func (f *FS) attr(n *node, out *fuse.AttrOut) fuse.Status {
	if n.live != nil {
		st, err := n.live.Stat()
		if err != nil {
			return status(err)
		}
		fromStat(&out.Attr, &st)
		out.SetTimeout(attrTTL)
		return fuse.OK
	}
	a, err := n.ent.Attr()
	if err != nil {
		return status(err)
	}
	fromTree(&out.Attr, n.ent, a)
	ttl := nameTTL
	if n.ent.Live && !n.ent.IsDir() {
		ttl = 0
	} else if n.ent.At.Gen == nil && (n.ent.At.Path != "" || n.ent.IsDir()) {
		ttl = attrTTL // the owner may change; below a generation that ends all names
	}
	out.SetTimeout(ttl)
	return fuse.OK
}

// GetAttr is stat.
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := f.node(in.NodeId)
	st := f.attr(n, out)
	if st.Ok() && n.live == nil && n.ent.Live && in.Flags()&fuse.FUSE_GETATTR_FH != 0 {
		if h := f.handle(in.Fh()); h != nil && h.row != nil {
			out.Size = uint64(h.row.size()) // of what this handle reads
		}
	}
	return st
}

// Readlink reads a symbolic link.
func (f *FS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	n := f.node(h.NodeId)
	if n.live != nil {
		b, err := n.live.Readlink()
		return b, status(err)
	}
	target, err := n.ent.Row.Link(n.ent.At)
	return []byte(target), status(err)
}

// StatFs is df: memory in use and its limit.
func (f *FS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	st := f.store.Statfs()
	*out = fuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), Frsize: uint32(st.Bsize), NameLen: unix.NAME_MAX,
	}
	return fuse.OK
}

// Access is not asked: the kernel checks permissions (default_permissions).
func (f *FS) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

func fromStat(a *fuse.Attr, st *unix.Stat_t) {
	*a = fuse.Attr{
		Ino: st.Ino, Size: uint64(st.Size), Blocks: uint64(st.Blocks),
		Atime: uint64(st.Atim.Sec), Mtime: uint64(st.Mtim.Sec), Ctime: uint64(st.Ctim.Sec),
		Atimensec: uint32(st.Atim.Nsec), Mtimensec: uint32(st.Mtim.Nsec), Ctimensec: uint32(st.Ctim.Nsec),
		Mode: st.Mode, Nlink: uint32(st.Nlink), Owner: fuse.Owner{Uid: st.Uid, Gid: st.Gid},
		Rdev: uint32(st.Rdev), Blksize: uint32(st.Blksize),
	}
}

func fromTree(out *fuse.Attr, e tree.Entry, a tree.Attr) {
	mode := uint32(a.Mode.Perm())
	nlink := uint32(1)
	switch {
	case a.Mode.IsDir():
		mode |= unix.S_IFDIR
		nlink = 2
	case e.Row.Link != nil:
		mode |= unix.S_IFLNK
	default:
		mode |= unix.S_IFREG
	}
	*out = fuse.Attr{
		Ino: e.Ino(), Size: uint64(a.Size), Blocks: uint64(a.Size+511) / 512, Mode: mode, Nlink: nlink,
		Owner: fuse.Owner{Uid: a.UID, Gid: a.GID}, Blksize: 128 << 10,
	}
	out.SetTimes(&a.Time, &a.Time, &a.Time)
}
