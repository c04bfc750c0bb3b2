package vectorboot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// hub is where the waiters of one model meet: streams that wait for a
// generation, and sessions. It lives as long as the model's name.
type hub struct {
	mu       sync.Mutex // guards all below and the sessions' fields
	sessions map[uint64]*Session
	next     uint64 // number of the next request
	gen      uint64 // current generation
	gone     bool   // the model was removed
	wake     chan struct{}
}

func newHub() *hub { return &hub{sessions: map[uint64]*Session{}, next: 1, wake: make(chan struct{})} }

// stir wakes everybody who waits. Caller holds mu.
func (h *hub) stir() {
	close(h.wake)
	h.wake = make(chan struct{})
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
	queue     []Request
	delivered uint64 // number of the newest request that was read
	acked     uint64
}

// Attach opens a session on a model.
func (rt *Runtime) Attach(p string, pid uint32) (*Session, error) {
	h := rt.hub(p)
	if h == nil {
		return nil, ErrNoModel
	}
	s := &Session{ID: rt.sessionID.Add(1), PID: pid, Since: time.Now(), h: h}
	h.mu.Lock()
	h.sessions[s.ID] = s
	h.mu.Unlock()
	rt.sessions.Add(1)
	rt.Events.Add(Event{Event: "attach", Model: p, PID: pid})
	return s, nil
}

// Detach ends a session; whoever waits for its answer waits no more.
func (rt *Runtime) Detach(p string, s *Session) {
	s.h.mu.Lock()
	delete(s.h.sessions, s.ID)
	s.h.stir()
	s.h.mu.Unlock()
	rt.sessions.Add(-1)
	rt.Events.Add(Event{Event: "detach", Model: p, PID: s.PID})
}

// errEnded is the end of a stream: the model is gone.
var errEnded = fmt.Errorf("the model was removed: %w", ErrNoModel)

// Next waits for the next request.
func (s *Session) Next(ctx context.Context) (Request, error) {
	for {
		s.h.mu.Lock()
		if len(s.queue) > 0 {
			r := s.queue[0]
			s.queue = s.queue[1:]
			s.delivered = r.N
			s.h.mu.Unlock()
			return r, nil
		}
		gone, wake := s.h.gone, s.h.wake
		s.h.mu.Unlock()
		if gone {
			return Request{}, errEnded
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return Request{}, ctx.Err()
		}
	}
}

// Ready reports whether Next would return at once.
func (s *Session) Ready() bool {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	return len(s.queue) > 0 || s.h.gone
}

// Ack acknowledges all requests up to n, which must have been read.
func (s *Session) Ack(n uint64) error {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	if n > s.delivered || n < s.acked {
		return fmt.Errorf("ack %d: requests %d to %d are open: %w", n, s.acked+1, s.delivered, unix.EINVAL)
	}
	s.acked = n
	s.h.stir()
	return nil
}

// post gives every session a request and returns its number. Caller holds mu.
func (h *hub) post(op string, merge string) (uint64, error) {
	n := h.next
	for _, s := range h.sessions {
		if k := len(s.queue); merge != "" && k > 0 && strings.HasPrefix(s.queue[k-1].Op, merge) {
			s.queue[k-1] = Request{n, op}
			continue
		}
		if len(s.queue) >= maxRequests {
			return 0, fmt.Errorf("process %d has left %d requests unread: %w", s.PID, maxRequests, unix.EAGAIN)
		}
		s.queue = append(s.queue, Request{n, op})
	}
	h.next++
	h.stir()
	return n, nil
}

// changed tells everybody who waits about a generation.
func (h *hub) changed(gen uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gen = gen
	// A session that reads nothing has one merged line at the end of its queue at most.
	_, _ = h.post(fmt.Sprintf("generation %d", gen), "generation ")
}

func (h *hub) end() {
	h.mu.Lock()
	h.gone = true
	h.stir()
	h.mu.Unlock()
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

// Interrupt wakes every session of a model with an opcode, through its file and
// through the control page. With a timeout it waits until all that are attached
// now have acknowledged, and otherwise fails with ETIMEDOUT and names who has not.
func (rt *Runtime) Interrupt(ctx context.Context, p string, opcode uint32, timeout time.Duration) error {
	rt.mu.RLock()
	m := rt.models[p]
	if m == nil || m.cur == nil {
		rt.mu.RUnlock()
		return ErrNoModel
	}
	h, page := m.hub, m.page
	rt.mu.RUnlock()

	h.mu.Lock()
	if h.gone { // and the page with it
		h.mu.Unlock()
		return ErrNoModel
	}
	n, err := h.post(fmt.Sprintf("interrupt 0x%x", opcode), "")
	if err == nil {
		page.interrupt(opcode, n)
	}
	waiting := make([]*Session, 0, len(h.sessions))
	for _, s := range h.sessions {
		waiting = append(waiting, s)
	}
	h.mu.Unlock()
	if err != nil {
		return err
	}
	rt.Stats.Interrupts.Add(1)
	rt.Events.Add(Event{Event: "interrupt", Model: p, Opcode: opcode})
	if timeout <= 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, unix.ETIMEDOUT)
	defer cancel()
	return h.await(ctx, waiting, n)
}

// await returns when all sessions have acknowledged request n or are gone.
func (h *hub) await(ctx context.Context, sessions []*Session, n uint64) error {
	for {
		h.mu.Lock()
		var missing []string
		for _, s := range sessions {
			if h.sessions[s.ID] == s && s.acked < n {
				missing = append(missing, fmt.Sprint(s.PID))
			}
		}
		wake := h.wake
		h.mu.Unlock()
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			if err := context.Cause(ctx); !errors.Is(err, unix.ETIMEDOUT) {
				return err
			}
			sort.Strings(missing)
			return fmt.Errorf("no acknowledgement from process %s: %w", strings.Join(missing, ", "), unix.ETIMEDOUT)
		}
	}
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

// Wait returns the generation of a model once it is not from any more.
func (rt *Runtime) Wait(ctx context.Context, p string, from uint64) (uint64, error) {
	h := rt.hub(p)
	if h == nil {
		return 0, ErrNoModel
	}
	for {
		h.mu.Lock()
		gen, gone, wake := h.gen, h.gone, h.wake
		h.mu.Unlock()
		switch {
		case gone:
			return 0, errEnded
		case gen != from:
			return gen, nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

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
