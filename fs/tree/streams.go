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

// Stream is a file of the tree whose reads wait.
type Stream interface {
	Read(ctx context.Context, limit int) ([]byte, error) // nothing at the end
	Write(b []byte) error
	Close()
}

// Caller is who opens a file.
type Caller struct{ PID uint32 }

type generationStream struct {
	at   At
	from uint64
}

// openWait reads the next generation once it differs from the one now.
func openWait(at At, _ Caller) (Stream, error) {
	return &generationStream{at, at.RT.Generation(at.Path)}, nil
}

func (s *generationStream) Read(ctx context.Context, _ int) ([]byte, error) {
	n, err := s.at.RT.Wait(ctx, s.at.Path, s.from)
	if errors.Is(err, vectorboot.ErrNoModel) {
		return nil, nil // the model is gone: the end
	}
	if err != nil {
		return nil, err
	}
	s.from = n
	return strconv.AppendUint(nil, n, 10), nil
}

func (s *generationStream) Write([]byte) error { return unix.EBADF }

func (s *generationStream) Close() {}

type eventStream struct {
	events *vectorboot.Events
	pos    int64
}

func openEvents(at At, _ Caller) (Stream, error) {
	return &eventStream{at.RT.Events, at.RT.Events.End()}, nil
}

func (s *eventStream) Read(ctx context.Context, limit int) (b []byte, err error) {
	b, s.pos, err = s.events.Next(ctx, s.pos, limit)
	return b, err
}

func (s *eventStream) Write([]byte) error { return unix.EBADF }

func (s *eventStream) Close() {}

type sessionStream struct {
	at At
	s  *vectorboot.Session
}

func openSession(at At, c Caller) (Stream, error) {
	s, err := at.RT.Attach(at.Path, c.PID)
	if err != nil {
		return nil, err
	}
	return &sessionStream{at, s}, nil
}

func (s *sessionStream) Read(ctx context.Context, _ int) ([]byte, error) {
	r, err := s.s.Next(ctx)
	if errors.Is(err, vectorboot.ErrNoModel) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%d %s\n", r.N, r.Op), nil
}

func (s *sessionStream) Write(b []byte) error {
	word, num, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	n, err := strconv.ParseUint(num, 10, 64)
	if word != "ack" || err != nil {
		return fmt.Errorf("want ack N: %w", unix.EINVAL)
	}
	return s.s.Ack(n)
}

func (s *sessionStream) Close() { s.at.RT.Detach(s.at.Path, s.s) }

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
func interrupt(ctx context.Context, at At, args string) error {
	word, rest, _ := strings.Cut(args, " ")
	op, err := strconv.ParseUint(word, 0, 32)
	if err != nil {
		return fmt.Errorf("opcode %q: %w", word, fs.ErrInvalid)
	}
	var timeout time.Duration
	if rest = strings.TrimSpace(rest); rest != "" {
		text, ok := strings.CutPrefix(rest, "timeout=")
		if timeout, err = time.ParseDuration(text); !ok || err != nil || timeout <= 0 {
			return fmt.Errorf("%q: want timeout=2s: %w", rest, fs.ErrInvalid)
		}
	}
	return at.RT.Interrupt(ctx, at.Path, uint32(op), timeout)
}
