package vectorboot

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"sync"
	"time"
)

// Event is one line of the event stream. Zero fields are left out.
type Event struct {
	Seq        uint64  `json:"seq"`
	Time       string  `json:"time"` // RFC 3339 with nanoseconds, UTC
	Event      string  `json:"event"`
	Model      string  `json:"model,omitempty"`
	From       string  `json:"from,omitempty"` // rename: the old path
	Generation uint64  `json:"generation,omitempty"`
	To         uint64  `json:"to,omitempty"` // rollback: the generation whose content came back
	Bytes      int64   `json:"bytes,omitempty"`
	Seconds    float64 `json:"seconds,omitempty"`
	PID        uint32  `json:"pid,omitempty"`
	Opcode     uint32  `json:"opcode,omitempty"`
	Error      string  `json:"error,omitempty"`
}

// logLimit bounds the event log in bytes: when it is passed, the older half goes.
const logLimit = 1 << 20

// Events is the log of what happened. It implements ggufview.View: its content
// grows, and shrinks by its older half at the bound.
type Events struct {
	mu   sync.Mutex // guards all below
	seq  uint64
	log  []byte
	cut  int64         // bytes that were dropped from the front so far
	wake chan struct{} // closed and replaced at every event
	end  bool          // nobody may wait any more
}

func newEvents() *Events { return &Events{wake: make(chan struct{})} }

// Add appends an event, numbering and dating it.
func (e *Events) Add(ev Event) {
	ev.Time = time.Now().UTC().Format(time.RFC3339Nano)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seq++
	ev.Seq = e.seq
	line, err := json.Marshal(ev)
	if err != nil {
		return // only strings and numbers: cannot happen
	}
	e.log = append(append(e.log, line...), '\n')
	if len(e.log) > logLimit {
		half := len(e.log) / 2
		half += bytes.IndexByte(e.log[half:], '\n') + 1
		e.log = append([]byte(nil), e.log[half:]...)
		e.cut += int64(half)
	}
	close(e.wake)
	e.wake = make(chan struct{})
}

// Size is the length of the log in bytes.
func (e *Events) Size() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return int64(len(e.log))
}

// ReadAt reads the log as it is now.
func (e *Events) ReadAt(p []byte, off int64) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if off < 0 || off >= int64(len(e.log)) {
		return 0, io.EOF
	}
	n := copy(p, e.log[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Close ends every wait; a reader gets what is left and then nothing.
func (e *Events) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.end = true
	close(e.wake)
	e.wake = make(chan struct{})
}

// End is the position after the newest event, for Next.
func (e *Events) End() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cut + int64(len(e.log))
}

// Next waits for whole lines after pos, at most limit bytes unless one line is
// longer, and returns them with the position after them. A reader that fell
// behind the bound goes on with the oldest event that is left.
func (e *Events) Next(ctx context.Context, pos int64, limit int) ([]byte, int64, error) {
	for {
		e.mu.Lock()
		pos = max(pos, e.cut)
		rest := e.log[pos-e.cut:]
		wake, end := e.wake, e.end
		if len(rest) > 0 {
			out := append([]byte(nil), wholeLines(rest, limit)...)
			e.mu.Unlock()
			return out, pos + int64(len(out)), nil
		}
		e.mu.Unlock()
		if end {
			return nil, pos, nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, pos, ctx.Err()
		}
	}
}

func wholeLines(b []byte, limit int) []byte {
	if len(b) <= limit {
		return b
	}
	if i := bytes.LastIndexByte(b[:limit], '\n'); i >= 0 {
		return b[:i+1]
	}
	return b[:bytes.IndexByte(b, '\n')+1]
}
