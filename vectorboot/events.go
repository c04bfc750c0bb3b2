package vectorboot

import (
	"bytes"
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
	bell bell // rings at every event

	mu  sync.Mutex // guards all below
	seq uint64
	log []byte
	cut int64 // bytes that were dropped from the front so far
	end bool  // nobody may wait any more
}

// Add appends an event, numbering and dating it.
func (e *Events) Add(ev Event) {
	ev.Time = time.Now().UTC().Format(time.RFC3339Nano)
	e.add(ev)
	e.bell.ring()
}

func (e *Events) add(ev Event) {
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

// Finish ends every wait; a reader gets what is left and then nothing. It is not
// called Close, for whoever read the log closes it.
func (e *Events) Finish() {
	e.mu.Lock()
	e.end = true
	e.mu.Unlock()
	e.bell.ring()
}

// Watch has wake called when Next may have something to say, until stop.
func (e *Events) Watch(wake func()) (stop func()) { return e.bell.watch(wake) }

// End is the position after the newest event, for Next.
func (e *Events) End() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cut + int64(len(e.log))
}

// Next returns whole lines after pos, at most limit bytes unless one line is
// longer, with the position after them; ErrWait if there are none yet, and nothing
// at the end. A reader that fell behind the bound goes on with the oldest event
// that is left.
func (e *Events) Next(pos int64, limit int) ([]byte, int64, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	pos = max(pos, e.cut)
	rest := e.log[pos-e.cut:]
	if len(rest) > 0 {
		out := append([]byte(nil), wholeLines(rest, limit)...)
		return out, pos + int64(len(out)), nil
	}
	if e.end {
		return nil, pos, nil
	}
	return nil, pos, ErrWait
}

// Ready reports whether Next has something to say.
func (e *Events) Ready(pos int64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.end || pos < e.cut+int64(len(e.log))
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
