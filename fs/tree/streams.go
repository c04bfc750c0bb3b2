package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vbootfs/vectorboot"
)

// Stream is a file of the tree whose reads wait. Its opener is called when there may
// be something to read.
type Stream interface {
	Read(limit int) ([]byte, error) // nothing at the end; vectorboot.ErrWait: nothing yet
	Ready() bool                    // Read has something to say
	Write(b []byte) error
	Close()
}

// Caller is who opens a file.
type Caller struct {
	PID  uint32
	Wake func() // for streams; it must not be called with locks that reading takes
}

type generationStream struct{ *vectorboot.Follower }

// openWait reads the next generation once it differs from the one now.
func openWait(at At, c Caller) (Stream, error) {
	f, err := at.RT.Follow(at.Path, c.Wake)
	return generationStream{f}, err
}

func (s generationStream) Read(int) ([]byte, error) {
	n, err := s.Next()
	if errors.Is(err, vectorboot.ErrNoModel) {
		return nil, nil // the model is gone: the end
	}
	if err != nil {
		return nil, err
	}
	return strconv.AppendUint(nil, n, 10), nil
}

func (s generationStream) Write([]byte) error { return unix.EBADF }

type eventStream struct {
	events *vectorboot.Events
	pos    int64
	stop   func()
}

func openEvents(at At, c Caller) (Stream, error) {
	e := at.RT.Events
	return &eventStream{e, e.End(), e.Watch(c.Wake)}, nil
}

func (s *eventStream) Read(limit int) (b []byte, err error) {
	b, s.pos, err = s.events.Next(s.pos, limit)
	return b, err
}

func (s *eventStream) Ready() bool { return s.events.Ready(s.pos) }

func (s *eventStream) Write([]byte) error { return unix.EBADF }

func (s *eventStream) Close() { s.stop() }

type sessionStream struct {
	at At
	*vectorboot.Session
}

func openSession(at At, c Caller) (Stream, error) {
	s, err := at.RT.Attach(at.Path, c.PID, c.Wake)
	return sessionStream{at, s}, err
}

func (s sessionStream) Read(int) ([]byte, error) {
	r, err := s.Next()
	if errors.Is(err, vectorboot.ErrNoModel) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%d %s\n", r.N, r.Op), nil
}

func (s sessionStream) Write(b []byte) error {
	word, num, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	n, err := strconv.ParseUint(num, 10, 64)
	if word != "ack" || err != nil {
		return fmt.Errorf("want ack N: %w", unix.EINVAL)
	}
	return s.Ack(n)
}

func (s sessionStream) Close() { s.at.RT.Detach(s.at.Path, s.Session) }

func listSessions(at At) (names []string) {
	for _, s := range at.RT.Sessions(at.Path) {
		names = append(names, strconv.FormatUint(s.ID, 10))
	}
	return names
}

func findSession(at At, name string) (*Row, At, bool) {
	for _, s := range at.RT.Sessions(at.Path) {
		if strconv.FormatUint(s.ID, 10) == name {
			at.Session = s.ID
			return sessionRow, at, true
		}
	}
	return nil, At{}, false
}

func showSession(at At) ([]byte, error) {
	for _, s := range at.RT.Sessions(at.Path) {
		if s.ID == at.Session {
			return fmt.Appendf(nil, "pid %d\ncommand %s\nsince %s\ndelivered %d\nacked %d\nunread %d\n",
				s.PID, vectorboot.Command(s.PID), s.Since.UTC().Format(time.RFC3339), s.Delivered, s.Acked, s.Unread), nil
		}
	}
	return nil, fs.ErrNotExist
}

func showReaders(at At) ([]byte, error) {
	b := []byte("pid\tcommand\tgeneration\n")
	for _, r := range at.RT.Readers(at.Path) {
		b = fmt.Appendf(b, "%d\t%s\t%d\n", r.PID, vectorboot.Command(r.PID), r.Generation)
	}
	return b, nil
}

// interrupt is the command "interrupt OPCODE [timeout=2s]".
func interrupt(ctx context.Context, at At, args string, done func(error)) {
	op, timeout, err := parseInterrupt(args)
	if err != nil {
		done(err)
		return
	}
	at.RT.Interrupt(ctx, at.Path, op, timeout, done)
}

func parseInterrupt(args string) (op uint32, timeout time.Duration, err error) {
	word, rest, _ := strings.Cut(args, " ")
	n, err := strconv.ParseUint(word, 0, 32)
	if err != nil {
		return 0, 0, fmt.Errorf("opcode %q: %w", word, fs.ErrInvalid)
	}
	if rest = strings.TrimSpace(rest); rest != "" {
		text, ok := strings.CutPrefix(rest, "timeout=")
		if timeout, err = time.ParseDuration(text); !ok || err != nil || timeout <= 0 {
			return 0, 0, fmt.Errorf("%q: want timeout=2s: %w", rest, fs.ErrInvalid)
		}
	}
	return uint32(n), timeout, nil
}
