package vectorboot

import (
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// hub is where the waiters of one model meet: streams that wait for a
// generation, sessions, and interrupts that wait for them. It lives as long as the
// model's name. Nobody is called with mu held.
type hub struct {
	bell bell // rings when there is something for streams and sessions to read

	mu       sync.Mutex // guards all below and the sessions' fields
	sessions map[uint64]*Session
	awaited  map[*awaited]struct{}
	next     uint64 // number of the next request
	gen      uint64 // current generation
	gone     bool   // the model was removed
}

func newHub() *hub {
	return &hub{sessions: map[uint64]*Session{}, awaited: map[*awaited]struct{}{}, next: 1}
}

// Request is what a session is asked to do.
type Request struct {
	N  uint64
	Op string // "interrupt 0xff" or "generation 7"
}

// maxRequests bounds what an attached process may leave unread. Changes of
// generation are merged, so only interrupts count.
const maxRequests = 1024

// Session is an attached runtime: an open file. It ends with its file.
type Session struct {
	ID    uint64
	PID   uint32
	Since time.Time

	h         *hub
	stop      func() // being called
	queue     []Request
	delivered uint64 // number of the newest request that was read
	acked     uint64
}

// Attach opens a session on a model. wake is called when Next may have something to say.
func (rt *Runtime) Attach(p string, pid uint32, wake func()) (*Session, error) {
	h := rt.hub(p)
	if h == nil {
		return nil, ErrNoModel
	}
	s := &Session{ID: rt.sessionID.Add(1), PID: pid, Since: time.Now(), h: h, stop: h.bell.watch(wake)}
	h.mu.Lock()
	h.sessions[s.ID] = s
	h.mu.Unlock()
	rt.sessions.Add(1)
	rt.Events.Add(Event{Event: "attach", Model: p, PID: pid})
	return s, nil
}

// Detach ends a session; whoever waits for its answer waits no more.
func (rt *Runtime) Detach(p string, s *Session) {
	s.stop()
	s.h.mu.Lock()
	delete(s.h.sessions, s.ID)
	s.h.mu.Unlock()
	s.h.settle()
	rt.sessions.Add(-1)
	rt.Events.Add(Event{Event: "detach", Model: p, PID: s.PID})
}

// errEnded is the end of a stream: the model is gone.
var errEnded = fmt.Errorf("the model was removed: %w", ErrNoModel)

// Next is the next request; ErrWait if there is none yet.
func (s *Session) Next() (Request, error) {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	switch {
	case len(s.queue) > 0:
		r := s.queue[0]
		s.queue = s.queue[1:]
		s.delivered = r.N
		return r, nil
	case s.h.gone:
		return Request{}, errEnded
	}
	return Request{}, ErrWait
}

// Ready reports whether Next would return at once.
func (s *Session) Ready() bool {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	return len(s.queue) > 0 || s.h.gone
}

// Ack acknowledges all requests up to n, which must have been read.
func (s *Session) Ack(n uint64) error {
	if err := s.ack(n); err != nil {
		return err
	}
	s.h.settle()
	return nil
}

func (s *Session) ack(n uint64) error {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	if n > s.delivered || n < s.acked {
		return fmt.Errorf("ack %d: requests %d to %d are open: %w", n, s.acked+1, s.delivered, unix.EINVAL)
	}
	s.acked = n
	return nil
}

// post gives every session a request and returns its number. A request of the kind
// merge takes the place of one that was not read. Caller holds mu, and rings the bell
// afterwards.
func (h *hub) post(op string, merge string) uint64 {
	n := h.next
	h.next++
	for _, s := range h.sessions {
		if k := len(s.queue); merge != "" && k > 0 && strings.HasPrefix(s.queue[k-1].Op, merge) {
			s.queue = s.queue[:k-1]
		}
		s.queue = append(s.queue, Request{n, op})
	}
	return n
}

// crowded is why no more interrupts can be posted: a session has read too few. Then
// no session gets one. Caller holds mu.
func (h *hub) crowded() error {
	for _, s := range h.sessions {
		if len(s.queue) >= maxRequests {
			return fmt.Errorf("process %d has left %d requests unread: %w", s.PID, maxRequests, unix.EAGAIN)
		}
	}
	return nil
}

// changed tells everybody who waits about a generation. Of two changes the second
// may be told first: then the first is no news any more.
func (h *hub) changed(gen uint64) {
	h.mu.Lock()
	news := gen > h.gen
	if news {
		h.gen = gen
		// A session that reads nothing has one merged line between two interrupts at most.
		h.post(fmt.Sprintf("generation %d", gen), "generation ")
	}
	h.mu.Unlock()
	if news {
		h.bell.ring()
	}
}

func (h *hub) end() {
	h.mu.Lock()
	h.gone = true
	h.mu.Unlock()
	h.bell.ring()
	h.settle()
}

// hub returns the waiters of a model, nil when there is no model.
func (rt *Runtime) hub(p string) *hub {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	if m := rt.models[p]; m != nil {
		return m.hub
	}
	return nil
}

// Sessions describes who is attached to a model, oldest first.
func (rt *Runtime) Sessions(p string) []SessionInfo {
	h := rt.hub(p)
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]SessionInfo, 0, len(h.sessions))
	for _, s := range h.sessions {
		out = append(out, SessionInfo{s.ID, s.PID, s.Since, s.delivered, s.acked, len(s.queue)})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

// SessionInfo is a snapshot of a session.
type SessionInfo struct {
	ID               uint64
	PID              uint32
	Since            time.Time
	Delivered, Acked uint64
	Unread           int
}

// Generation is the number of a model's current generation now, 0 when nothing
// was ever loaded.
func (rt *Runtime) Generation(p string) uint64 {
	g := rt.Acquire(p)
	if g == nil {
		return 0
	}
	defer g.Release()
	return g.N
}

// Follower waits for the next generation of a model.
type Follower struct {
	h    *hub
	from uint64
	stop func()
}

// Follow begins to wait for a generation that is newer than the one now. wake is
// called when Next may have something to say.
func (rt *Runtime) Follow(p string, wake func()) (*Follower, error) {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	m := rt.models[p]
	if m == nil {
		return nil, ErrNoModel
	}
	f := &Follower{h: m.hub, stop: m.hub.bell.watch(wake)}
	if m.cur != nil { // the hub may not have heard of it yet
		f.from = m.cur.N
	}
	return f, nil
}

// Next is the current generation if it was not returned before; ErrWait if it was.
func (f *Follower) Next() (uint64, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	switch {
	case f.h.gone:
		return 0, errEnded
	case f.h.gen <= f.from:
		return 0, ErrWait
	}
	f.from = f.h.gen
	return f.from, nil
}

// Ready reports whether Next has something to say.
func (f *Follower) Ready() bool {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	return f.h.gone || f.h.gen > f.from
}

// Close ends the wait.
func (f *Follower) Close() { f.stop() }

// Reader is a process that has a model's bytes open.
type Reader struct {
	PID        uint32
	Generation uint64
}

// Readers lists who has a model open or mapped, as the mount knows it.
func (rt *Runtime) Readers(p string) []Reader {
	if rt.readers == nil {
		return nil
	}
	return rt.readers(p)
}

// SetReaders registers who knows the readers of a model. Call it before serving.
func (rt *Runtime) SetReaders(f func(string) []Reader) { rt.readers = f }

// Command is the name of a process, "?" when it is gone.
func Command(pid uint32) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(b))
}
