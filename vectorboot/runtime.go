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
	"context"
	"errors"
	"fmt"
	"path"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

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

// Model is one *.gguf name. Fields are guarded by Runtime.mu.
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

	mu     sync.RWMutex // guards models, active, chosen and every Model
	models map[string]*Model
	active string
	chosen bool // active was set by a command: a newer load does not take it

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

// Change tells an observer that cached views of a model are out of date.
type Change struct {
	Path  string
	Gone  bool    // the name went away or came into being, not only its content
	Moved bool    // the name in the live tree stands for another file now
	Data  []patch // ranges of the segment Ino that were changed in place
	Ino   uint64
}

// New makes a runtime over a store. With a source, files are written back to it
// and cold files are read from it.
func New(store *shm.Store, source *Source) *Runtime {
	rt := &Runtime{
		Events: newEvents(), Start: time.Now(),
		store: store, source: source,
		models: map[string]*Model{}, observe: func(Change) {},
	}
	if source != nil {
		source.report = rt.Events.Add
	}
	return rt
}

// Observe registers the one function that hears of changes which the runtime
// makes by itself. It is called without locks, before the caller is answered.
// Changes made by a call that returns them are the caller's to tell.
func (rt *Runtime) Observe(f func(Change)) { rt.observe = f }

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

// Close lets every model go.
func (rt *Runtime) Close() {
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
	return rt.publish(p, g)
}

// publish is Publish for those who hold change.
func (rt *Runtime) publish(p string, g *Generation) []Change {
	rt.mu.Lock()
	m := rt.model(p)
	rt.mu.Unlock()
	if m.page == nil {
		page, err := openControl(rt.store, p)
		if err != nil {
			g.Release()
			return rt.Fail(p, fmt.Errorf("control page: %w", err))
		}
		m.page = page
	}
	m.page.begin()
	rt.mu.Lock()
	old := m.cur
	g.N = m.next
	g.Path = p
	m.next++
	m.cur, m.failed = g, ""
	m.set(g.state())
	rt.elect(p)
	rt.mu.Unlock()
	if !g.Cold {
		g.Seg.note(rt.store.Mark("generation"), g.N)
	}
	m.page.end(g)
	m.hub.changed(g.N)

	name := "load"
	if old != nil {
		name = "replace"
		old.Release()
	}
	rt.count(name, g)
	return []Change{{Path: p, Gone: old == nil}}
}

// count reports a load.
func (rt *Runtime) count(event string, g *Generation) {
	if g.Cold {
		return
	}
	rt.Stats.Loads.Add(1)
	rt.Stats.BytesLoaded.Add(g.Info.Size)
	rt.Stats.LoadNanos.Add(int64(g.Took))
	rt.Events.Add(Event{Event: event, Model: g.Path, Generation: g.N, Bytes: g.Info.Size, Seconds: g.Took.Seconds()})
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

// Remove unloads path; readers that hold its generation keep it.
func (rt *Runtime) Remove(p string) []Change {
	rt.mu.Lock()
	m := rt.models[p]
	delete(rt.models, p)
	rt.retire(p)
	rt.mu.Unlock()
	if m == nil {
		return nil
	}
	rt.end(m)
	if m.cur != nil {
		rt.Events.Add(Event{Event: "unload", Model: p, Generation: m.cur.N})
		m.cur.Release()
	}
	return []Change{{Path: p, Gone: true}}
}

// end lets go of what belongs to a model's name.
func (rt *Runtime) end(m *Model) {
	m.hub.end()
	for _, d := range m.drafts {
		d.drop()
	}
	if m.page != nil {
		_ = rt.store.Control.Unlink(controlName(m.path))
		m.page.Close()
	}
}

// retire lets go of the active model when it went away; the newest load that is
// left takes its place. Caller holds mu.
func (rt *Runtime) retire(p string) {
	if rt.active != p {
		return
	}
	rt.active, rt.chosen = "", false
	var best *Model
	for _, m := range rt.models {
		if m.cur != nil && (best == nil || m.cur.Loaded.After(best.cur.Loaded)) {
			best = m
		}
	}
	if best != nil {
		rt.active = best.path
	}
}

// below reports whether p is dir or lies below it, and what follows dir.
func below(p, dir string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(p, dir)
	return rest, ok && (rest == "" || rest[0] == '/')
}

// Move renames a model, or every model below a directory, with everything that
// belongs to the name. A model that had the new name already gets the moved file
// as its next generation: who waits for it, waits for the name.
func (rt *Runtime) Move(from, to string) (changes []Change) {
	if rt.Known(to) {
		g := rt.Acquire(from)
		changes = rt.Remove(from)
		if g == nil {
			return append(changes, rt.Remove(to)...)
		}
		return append(changes, rt.Publish(to, g.clone())...)
	}
	rt.mu.Lock()
	moved := map[string]string{}
	for p := range rt.models {
		if rest, ok := below(p, from); ok {
			moved[p] = to + rest
		}
	}
	for p, q := range moved {
		rt.move(p, q)
	}
	rt.mu.Unlock()
	for p, q := range moved {
		// Without the file under the new name a crash makes readers map it again.
		_ = rt.store.Control.Rename(controlName(p), rt.store.Control, controlName(q), 0)
		rt.Events.Add(Event{Event: "rename", Model: q, From: p})
		changes = append(changes, Change{Path: p, Gone: true}, Change{Path: q, Gone: true})
	}
	return changes
}

// move is Move of one name to a free one. Caller holds mu.
func (rt *Runtime) move(from, to string) {
	m := rt.models[from]
	delete(rt.models, from)
	m.path = to
	if m.cur != nil {
		m.cur = m.cur.renamed(to)
	}
	rt.models[to] = m
	if rt.active == from {
		rt.active = to
	}
}

// Swap exchanges two names (RENAME_EXCHANGE), directories with all below them.
// Each name gets what the other had as its next generation. fromA and fromB, if
// not nil, are what was no model under the one name and is one under the other.
func (rt *Runtime) Swap(a, b string, fromA, fromB *Generation) []Change {
	ga, gb := rt.gather(a, fromA), rt.gather(b, fromB)
	return append(rt.scatter(a, gb, ga), rt.scatter(b, ga, gb)...)
}

// gather takes a hold on the generations at and below a path, by the rest of
// theirs. It takes over extra.
func (rt *Runtime) gather(dir string, extra *Generation) map[string]*Generation {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	out := map[string]*Generation{}
	for p, m := range rt.models {
		if rest, ok := below(p, dir); ok && m.cur != nil {
			m.cur.Acquire()
			out[rest] = m.cur
		}
	}
	if extra != nil {
		out[""] = extra
	}
	return out
}

// scatter publishes copies of what came below dir, and removes what was there.
func (rt *Runtime) scatter(dir string, came, was map[string]*Generation) (changes []Change) {
	for rest := range was { // of a plain name this removes nothing
		if came[rest] == nil || !Loadable(dir+rest) {
			changes = append(changes, rt.Remove(dir+rest)...)
		}
	}
	for rest, g := range came {
		if Loadable(dir + rest) {
			changes = append(changes, rt.Publish(dir+rest, g.clone())...)
		} else {
			g.Release()
		}
	}
	return changes
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

// Acquire returns the current generation of a model, nil when it has none. The
// caller releases it.
func (rt *Runtime) Acquire(p string) *Generation {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	if m := rt.models[p]; m != nil && m.cur != nil {
		m.cur.Acquire()
		return m.cur
	}
	return nil
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
		return Info{}, false
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
	for i := range f.Tensors {
		want = max(want, f.Tensors[i].Offset+f.Tensors[i].Bytes)
	}
	return have, want
}

// Paths lists the models in order of name.
func (rt *Runtime) Paths() []string {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	out := make([]string, 0, len(rt.models))
	for p := range rt.models {
		out = append(out, p)
	}
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
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if p == "" {
		rt.chosen = false
		return nil
	}
	if m := rt.models[p]; m == nil || m.cur == nil {
		return ErrNoModel
	}
	rt.active, rt.chosen = p, true
	return nil
}

// Known reports whether there is a model of that name, whatever its state.
func (rt *Runtime) Known(p string) bool {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	return rt.models[p] != nil
}

// Warm brings the bytes of a cold file into memory, in place, before it is
// opened; other files are left alone. It returns ENOSPC when they do not fit.
func (rt *Runtime) Warm(ctx context.Context, node *shm.Node) error {
	if rt.source == nil || !rt.source.IsCold(node) {
		return nil
	}
	p, ok := node.Path()
	if !ok {
		return errors.New("a file that was removed before it was read")
	}
	begin := time.Now()
	if err := rt.source.Fill(ctx, p, node); err != nil {
		return err
	}
	if !Loadable(p) {
		return nil
	}
	g, err := Judge(node)
	if err != nil {
		rt.tell(rt.Fail(p, err))
		return nil // the bytes are readable as a file all the same
	}
	g.Took = time.Since(begin)
	rt.warmed(p, g)
	return nil
}

// Load brings a cold model into memory.
func (rt *Runtime) Load(ctx context.Context, p string) error {
	g := rt.Acquire(p)
	if g == nil {
		return ErrNoModel
	}
	defer g.Release()
	return rt.Warm(ctx, g.Seg.Node)
}

// Sync waits until SOURCE has everything.
func (rt *Runtime) Sync(ctx context.Context) error {
	if rt.source == nil {
		return nil
	}
	return rt.source.Wait(ctx)
}

// warmed replaces a cold generation by the loaded one of the same number.
func (rt *Runtime) warmed(p string, g *Generation) {
	rt.mu.Lock()
	m := rt.models[p]
	if m == nil || m.cur == nil || m.cur.Seg.Ino != g.Seg.Ino {
		rt.mu.Unlock()
		g.Release()
		return
	}
	old := m.cur
	g.N, g.Path = old.N, p
	m.cur = g
	m.set(Loaded)
	rt.mu.Unlock()
	old.Release()
	rt.count("load", g)
	rt.tell([]Change{{Path: p}})
}

// tell passes changes to the observer. No lock is held.
func (rt *Runtime) tell(changes []Change) {
	for _, c := range changes {
		rt.observe(c)
	}
}

// oneLine keeps an error on one line of a file.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", " ") }
