// Package vectorboot is the runtime: which models are loaded, from which
// segment, in which generation, and what happened to them. It knows shared
// memory and GGUF, but neither FUSE nor where the mount is.
//
// A model is named by its path below the output directory. Its generations are
// immutable descriptions of one segment; a change makes the next one. Whoever
// uses a Generation holds it (Acquire, Release): its mapping ends with the last
// holder, so bytes it hands out are never unmapped under a reader.
//
// Lock order: Names, then change, then mu, then the lock of a hub or a draft. mu
// guards the registry; no I/O and no call to an observer happens under it. change
// is held while a model's bytes change, Names while names in the live tree change
// together with the registry.
package vectorboot

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vbootfs/shm"
)

// State is what models/P/state says.
type State string

// The states of a model.
const (
	Receiving State = "receiving" // a writer has it open
	Loading   State = "loading"   // bytes are being brought into memory
	Loaded    State = "loaded"
	Cold      State = "cold" // known, layout readable, bytes still in SOURCE
	Failed    State = "failed"
)

// Model is one *.gguf name. Fields are guarded by Runtime.mu; path, page and past
// change only with Runtime.change held as well.
type Model struct {
	path   string
	cur    *Generation // nil while nothing valid was ever loaded
	next   uint64      // number of the next generation
	state  State       // of the incoming bytes, or of cur
	failed string      // why the last load failed; one line
	in     *shm.Node   // the file being received, borrowed from its writer
	since  time.Time   // when the state began

	page    *control          // nil until something was loaded
	hub     *hub              // set once
	policy  Policy            // guards commits
	touched map[string]uint64 // tensors/NAME and metadata/KEY -> generation of its last change
	drafts  map[string]*Draft
	pinned  bool

	replaced uint64  // generation that was the last to come as a whole file
	now      version // what cur is to people
	past     []*past // kept old generations, oldest first, without gaps up to cur
}

// Runtime is the registry of models.
type Runtime struct {
	Stats  Stats
	Events *Events
	Start  time.Time

	store  *shm.Store
	source *Source // nil: memory only

	Names sync.Mutex // see the package comment

	change    sync.Mutex // see the package comment
	sessionID atomic.Uint64
	draftID   atomic.Uint64
	sessions  atomic.Int64
	policy    Policy // of new models
	history   history
	patching  atomic.Uint64 // odd while a segment is changed in place

	mu     sync.RWMutex // guards models, active, chosen and every Model
	models map[string]*Model
	active string
	chosen bool // active was set by a command: a newer load does not take it

	joined joined // headers of models in several files

	observe func(Change)
	pass    atomic.Bool
	readers func(string) []Reader
}

// SetPassthrough says whether reads of model data bypass the daemon.
func (rt *Runtime) SetPassthrough(on bool) { rt.pass.Store(on) }

// Passthrough is "on" or "off", for status.
func (rt *Runtime) Passthrough() string {
	if rt.pass.Load() {
		return "on"
	}
	return "off"
}

// Uptime is the time since the start.
func (rt *Runtime) Uptime() time.Duration { return time.Since(rt.Start) }

// New makes a runtime over a store. With a source, files are written back to it
// and cold files are read from it.
func New(store *shm.Store, source *Source) *Runtime {
	rt := &Runtime{
		Events: &Events{}, Start: time.Now(),
		store: store, source: source,
		models: map[string]*Model{}, observe: func(Change) {},
	}
	_, limit := store.Usage()
	rt.history.limit = limit / 16
	if source != nil {
		source.report, source.calm = rt.Events.Add, &rt.change
	}
	return rt
}

// Store is the segment store.
func (rt *Runtime) Store() *shm.Store { return rt.store }

// Source is the durable directory, nil for memory only.
func (rt *Runtime) Source() *Source { return rt.source }

// Loadable reports whether a file of this name is a model: *.gguf, not hidden.
// Temporary names (.tmp, .part, .incomplete) do not end in .gguf.
func Loadable(name string) bool {
	base := path.Base(name)
	return strings.HasSuffix(base, ".gguf") && !strings.HasPrefix(base, ".")
}

// model returns the entry for path, making it when needed. Caller holds mu.
func (rt *Runtime) model(p string) *Model {
	m := rt.models[p]
	if m == nil {
		m = &Model{path: p, next: 1, hub: newHub(), policy: rt.policy, touched: map[string]uint64{}, drafts: map[string]*Draft{}}
		rt.models[p] = m
	}
	return m
}

func (m *Model) set(s State) { m.state, m.since = s, time.Now() }

// EndStreams wakes everybody who waits for an event, a generation or a request,
// and tells them that there will be no more.
func (rt *Runtime) EndStreams() {
	rt.Events.Finish()
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	for _, m := range rt.models {
		m.hub.end()
	}
}

// Close lets every model go.
func (rt *Runtime) Close() {
	rt.change.Lock()
	defer rt.change.Unlock()
	rt.mu.Lock()
	models := rt.models
	rt.models = map[string]*Model{}
	rt.mu.Unlock()
	for _, m := range models {
		rt.end(m)
		if m.cur != nil {
			m.cur.Release()
		}
	}
}

// Receive says that node is being written under path. The node is borrowed
// until Forget.
func (rt *Runtime) Receive(p string, node *shm.Node) []Change {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	_, known := rt.models[p]
	m := rt.model(p)
	m.in = node
	if m.cur == nil {
		m.set(Receiving)
	}
	if known {
		return nil
	}
	return []Change{{Path: p, Gone: true}}
}

// Forget ends a Receive: the writer is gone. A name that never had anything to
// show (an empty file) is no model.
func (rt *Runtime) Forget(node *shm.Node) []Change {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	for p, m := range rt.models {
		if m.in != node {
			continue
		}
		m.in = nil
		if m.cur != nil {
			return nil
		}
		m.set(Failed)
		if m.failed == "" {
			delete(rt.models, p)
		}
		return []Change{{Path: p, Gone: true}}
	}
	return nil
}

// Publish makes g the current generation of path and takes it over. The caller
// serialises this with renames and removals of the same names, and tells
// observers of the changes when it holds no lock.
func (rt *Runtime) Publish(p string, g *Generation) []Change {
	rt.change.Lock()
	defer rt.change.Unlock()
	return rt.publish(p, g, &step{})
}

// publish is Publish for those who hold change. The step says why.
func (rt *Runtime) publish(p string, g *Generation, s *step) []Change {
	m, err := rt.withPage(p)
	if err != nil {
		g.Release()
		return rt.Fail(p, err)
	}
	m.page.begin()
	rt.mu.Lock()
	old := m.cur
	g.N, g.Path, g.m = m.next, p, m
	m.next++
	m.cur, m.failed = g, ""
	m.set(g.state())
	rt.elect(p)
	m.replaced = g.N
	rt.mu.Unlock()
	if !g.Cold {
		g.Seg.note(rt.store.Mark("generation"), g.N)
	}

	name := "load"
	var kept *past
	if old != nil {
		name = cmp.Or(s.event, "replace")
		kept = rt.retain(m, old)
		old.Release()
	}
	rt.remember(m, kept, version{g.N, g.Loaded, cmp.Or(s.what, name)})
	rt.count(name, g, s.to)
	n, ino, size := g.N, g.Seg.Ino, g.Info.Size
	return []Change{{Path: p, Gone: old == nil, told: func() {
		m.page.end(n, ino, size)
		m.hub.changed(n)
	}}}
}

// withPage returns the entry for path with its control page. Caller holds change.
func (rt *Runtime) withPage(p string) (*Model, error) {
	rt.mu.Lock()
	m := rt.model(p)
	have := m.page != nil
	rt.mu.Unlock()
	if have {
		return m, nil
	}
	page, err := openControl(rt.store, p)
	if err != nil {
		return nil, fmt.Errorf("control page: %w", err)
	}
	rt.mu.Lock()
	m.page = page
	rt.mu.Unlock()
	return m, nil
}

// count reports a load.
func (rt *Runtime) count(event string, g *Generation, to uint64) {
	if g.Cold {
		return
	}
	rt.Stats.Loads.Add(1)
	rt.Stats.BytesLoaded.Add(g.Info.Size)
	rt.Stats.LoadNanos.Add(int64(g.Took))
	rt.Events.Add(Event{Event: event, Model: g.Path, Generation: g.N, To: to, Bytes: g.Info.Size, Seconds: g.Took.Seconds()})
}

// elect makes the newest load the active model unless a user chose one. Caller holds mu.
func (rt *Runtime) elect(p string) {
	if !rt.chosen {
		rt.active = p
	}
}

// Fail records why the bytes at path are no model. A loaded model stays.
func (rt *Runtime) Fail(p string, err error) []Change {
	rt.mu.Lock()
	_, known := rt.models[p]
	m := rt.model(p)
	m.failed = oneLine(err.Error())
	if m.cur == nil {
		m.set(Failed)
	}
	rt.mu.Unlock()
	rt.Stats.FailedLoads.Add(1)
	rt.Events.Add(Event{Event: "failed", Model: p, Error: oneLine(err.Error())})
	return []Change{{Path: p, Gone: !known}}
}

// Holds reports whether the inode is the segment of a loaded model: it must not
// be written then.
func (rt *Runtime) Holds(ino uint64) bool {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	for _, m := range rt.models {
		if m.cur != nil && m.cur.Seg.Ino == ino {
			return true
		}
	}
	return false
}

// Fixed reports whether a file may not be written in place: it is, or was under
// an earlier name, the segment of a model, and readers rely on its bytes.
func (rt *Runtime) Fixed(n *shm.Node) bool {
	return rt.Holds(n.Ino) || n.Type == unix.S_IFREG && n.HasXattr(rt.store.Mark("generation"))
}

// Acquire returns the current generation of a model, nil when it has none. The
// caller releases it.
func (rt *Runtime) Acquire(p string) *Generation {
	g, known := rt.acquire(p)
	if !known {
		g, _ = rt.acquireWhole(p)
	}
	return g
}

// acquire is Acquire for models in one file; known is false if there is none.
func (rt *Runtime) acquire(p string) (g *Generation, known bool) {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	m := rt.models[p]
	if m == nil {
		return nil, false
	}
	if m.cur != nil {
		m.cur.Acquire()
	}
	return m.cur, true
}

// Info is a snapshot of a model for the status files.
type Info struct {
	Path        string
	State       State
	Error       string
	Generation  uint64
	Bytes, Want int64 // bytes that are here, and that the header asks for (0: not known yet)
}

// Info describes a model; false when there is none of that name.
func (rt *Runtime) Info(p string) (Info, bool) {
	rt.mu.RLock()
	m := rt.models[p]
	if m == nil {
		rt.mu.RUnlock()
		return rt.wholeInfo(p)
	}
	i := Info{Path: p, State: m.state, Error: m.failed}
	in := m.in
	var busy *shm.Node
	if in != nil { // the writer may close its handle meanwhile: work on our own
		busy, _ = in.Dup()
	}
	if m.cur != nil {
		i.Generation, i.Bytes, i.Want = m.cur.N, m.cur.Info.Size, m.cur.Info.Size
		if m.cur.Cold {
			i.Bytes = 0
		}
	}
	rt.mu.RUnlock()
	if busy != nil {
		i.Bytes, i.Want = progress(busy)
		busy.Close()
	}
	return i, true
}

// progress reads how much of a growing file is there and, once its header is,
// how much there will be.
func progress(n *shm.Node) (have, want int64) {
	have = n.Size()
	m, err := n.Map()
	if err != nil {
		return have, 0
	}
	defer m.Unmap()
	f, err := parse(m.Bytes, 1<<62) // as if all of it were there
	if err != nil {
		return have, 0
	}
	want = f.DataOffset
	for _, t := range f.Tensors() {
		want = max(want, t.Offset+t.Bytes)
	}
	return have, want
}

// Paths lists the models, wholes too, in order of name.
func (rt *Runtime) Paths() []string {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	out := make([]string, 0, len(rt.models))
	for p := range rt.models {
		out = append(out, p)
	}
	out = rt.addWholes(out)
	sort.Strings(out)
	return out
}

// Active is the path of the active model, "" when nothing is loaded.
func (rt *Runtime) Active() string {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	return rt.active
}

// ErrNoModel says that no model of that name is loaded.
var ErrNoModel = errors.New("no such model is loaded")

// Activate chooses the active model; "" lets the newest load be active again.
func (rt *Runtime) Activate(p string) error {
	if p != "" {
		g := rt.Acquire(p) // it may go away from now on, as it may later
		if g == nil {
			return ErrNoModel
		}
		g.Release()
	}
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if p == "" {
		rt.chosen = false
		return nil
	}
	rt.active, rt.chosen = p, true
	return nil
}

// Known reports whether there is a model of that name in one file, whatever its state.
func (rt *Runtime) Known(p string) bool {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	return rt.models[p] != nil
}

// oneLine keeps an error on one line of a file, without what would do something on
// a terminal, and no longer than somebody reads: parts of it come from models and paths.
func oneLine(s string) string {
	const enough = 1000
	if len(s) > enough {
		s = s[:enough] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}
