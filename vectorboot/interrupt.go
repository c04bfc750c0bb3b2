package vectorboot

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// awaited is an interrupt that waits for acknowledgements. It is in hub.awaited
// until its end is known; who takes it out tells.
type awaited struct {
	n     uint64 // number of the request
	who   []*Session
	timer *time.Timer
	stop  func() bool // of the wait for the caller's end
	done  func(error)
}

// Interrupt wakes every session of a model with an opcode, through its file and
// through the control page, and then calls done, once. With a timeout that happens
// when all that are attached now have acknowledged or are gone, and no goroutine
// waits for it; otherwise the error is ETIMEDOUT and names who has not, or that of ctx.
func (rt *Runtime) Interrupt(ctx context.Context, p string, opcode uint32, timeout time.Duration, done func(error)) {
	rt.mu.RLock()
	m := rt.models[p]
	if m == nil || m.cur == nil {
		rt.mu.RUnlock()
		done(ErrNoModel)
		return
	}
	h, page := m.hub, m.page
	rt.mu.RUnlock()

	if err := h.interrupt(ctx, page, opcode, timeout, done); err != nil {
		done(err)
		return
	}
	h.bell.ring()
	rt.Stats.Interrupts.Add(1)
	rt.Events.Add(Event{Event: "interrupt", Model: p, Opcode: opcode})
	if timeout <= 0 {
		done(nil)
		return
	}
	h.settle() // nobody may be attached
}

// interrupt posts the request and, with a timeout, begins the wait for its end.
func (h *hub) interrupt(ctx context.Context, page *control, opcode uint32, timeout time.Duration, done func(error)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone { // and the page with it
		return ErrNoModel
	}
	if err := h.crowded(); err != nil {
		return err
	}
	n := h.post(fmt.Sprintf("interrupt 0x%x", opcode), "")
	page.interrupt(opcode, n)
	if timeout <= 0 {
		return nil
	}
	a := &awaited{n: n, done: done}
	for _, s := range h.sessions {
		a.who = append(a.who, s)
	}
	h.awaited[a] = struct{}{}
	a.timer = time.AfterFunc(timeout, func() { h.fail(a, unix.ETIMEDOUT) })
	a.stop = context.AfterFunc(ctx, func() { h.fail(a, ctx.Err()) })
	return nil
}

// settle ends the waits that all have acknowledged, and all when the model is gone.
func (h *hub) settle() {
	var over []*awaited
	var err error
	h.mu.Lock()
	if h.gone {
		err = errEnded
	}
	for a := range h.awaited {
		if h.gone || len(h.missing(a)) == 0 {
			h.take(a)
			over = append(over, a)
		}
	}
	h.mu.Unlock()
	for _, a := range over {
		a.done(err)
	}
}

// fail ends a wait that has not ended.
func (h *hub) fail(a *awaited, err error) {
	h.mu.Lock()
	_, waits := h.awaited[a]
	missing := h.missing(a)
	if waits {
		h.take(a)
	}
	h.mu.Unlock()
	switch {
	case !waits:
	case err == unix.ETIMEDOUT:
		a.done(fmt.Errorf("no acknowledgement from process %s: %w", strings.Join(missing, ", "), err))
	default:
		a.done(err)
	}
}

// take removes a wait. Caller holds mu.
func (h *hub) take(a *awaited) {
	delete(h.awaited, a)
	a.timer.Stop()
	a.stop()
}

// missing are the processes that have not acknowledged. Caller holds mu.
func (h *hub) missing(a *awaited) (pids []string) {
	for _, s := range a.who {
		if h.sessions[s.ID] == s && s.acked < a.n {
			pids = append(pids, fmt.Sprint(s.PID))
		}
	}
	sort.Strings(pids)
	return pids
}
