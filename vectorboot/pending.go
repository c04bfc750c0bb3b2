package vectorboot

import (
	"context"
	"maps"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// What SOURCE does not have yet: the list of names, the goroutine that works it
// off, and those who wait for it.

// Mark says that SOURCE may differ from the live tree at p. A name that is gone is
// noted first, so that it does not come back if the daemon is killed.
func (s *Source) Mark(p string) {
	if s.readOnly {
		return
	}
	var size int64
	n, err := s.live.Walk(p)
	if err == nil {
		id, cold := s.coldID(n)
		if n.Type == unix.S_IFREG && !cold {
			size = n.Size()
		}
		n.Close()
		if cold {
			s.mu.Lock()
			s.uneasy[id] = true
			s.mu.Unlock()
		}
	}
	s.notes.mu.Lock()
	var failed error
	if gone(err) == nil && err != nil && !s.notes.gone[p] {
		failed = s.notes.add('g', p)
	}
	s.mu.Lock()
	s.marked[p] = size
	s.change.Broadcast()
	s.mu.Unlock()
	s.notes.mu.Unlock()
	s.noted(failed)
}

// Leaving says that a name is about to be removed or renamed: if the daemon is
// killed right after that, the next start must not bring it back. The function
// that it returns says whether it went; when it did, Mark or Renamed was called
// before. One name at a time (Runtime.Names).
func (s *Source) Leaving(p string) (settled func(went bool)) {
	if s.readOnly {
		return func(bool) {}
	}
	settled, err := s.notes.leave(p)
	s.noted(err)
	return settled
}

// caughtUp drops the note that a name is gone, unless it is marked again.
func (s *Source) caughtUp(p string) {
	s.notes.mu.Lock()
	defer s.notes.mu.Unlock()
	s.mu.Lock()
	_, again := s.marked[p]
	s.mu.Unlock()
	if s.notes.gone[p] && !again && s.notes.leaving != p {
		_ = s.notes.add('G', p) // a start looks at what is there before it believes a note
	}
}

// caughtUpOthers drops notes of names that SOURCE turned out not to have.
func (s *Source) caughtUpOthers() {
	s.notes.mu.Lock()
	names := maps.Clone(s.notes.gone)
	s.notes.mu.Unlock()
	for p := range names {
		s.caughtUp(p)
	}
}

// quiet is how long a model must go without commits before it is written back:
// each write-back copies the whole file.
const quiet = 2 * time.Second

// MarkLater marks a name once it has been left alone for a while.
func (s *Source) MarkLater(p string) {
	if s.readOnly {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.later[p]; t != nil {
		t.Reset(quiet)
		return
	}
	s.later[p] = time.AfterFunc(quiet, func() {
		var size int64
		if n, err := s.live.Walk(p); err == nil {
			size = n.Size()
			n.Close()
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.due(p, size)
	})
}

// due marks what waited for its quiet time, in one step: it is pending all the
// time. Caller holds mu.
func (s *Source) due(p string, size int64) {
	if t := s.later[p]; t != nil { // else somebody has done so already
		t.Stop()
		delete(s.later, p)
		s.marked[p] = size
		s.change.Broadcast()
	}
}

// hasten marks at once what waits for its quiet time.
func (s *Source) hasten() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.later {
		s.due(p, 0)
	}
}

// Pending counts the marked names and their bytes.
func (s *Source) Pending() (files int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	files, bytes = len(s.marked)+len(s.later), s.bytes
	if s.busy != "" {
		files++
	}
	for _, b := range s.marked {
		bytes += b
	}
	return files, bytes
}

// run reconciles marked names until Close, and one that failed again after a pause.
func (s *Source) run() {
	defer close(s.done)
	for {
		p, ok := s.take()
		if !ok {
			return
		}
		if err := s.reconcile(p, false); err != nil {
			s.mu.Lock()
			s.errs[p] = err
			s.mu.Unlock()
			s.fail(p, err)
		}
	}
}

// take waits for a marked name and makes it busy.
func (s *Source) take() (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy, s.bytes = "", 0
	s.change.Broadcast()
	for {
		for p, b := range s.marked {
			if !s.paused[p] || s.closed {
				delete(s.marked, p)
				s.busy, s.bytes = p, b
				return p, true
			}
		}
		if s.closed {
			return "", false
		}
		s.change.Wait()
	}
}

// retryAfter is the pause before a failed write-back is tried again.
const retryAfter = 5 * time.Second

// fail reports an error and marks the name again, to be tried after a pause.
func (s *Source) fail(p string, err error) {
	s.report(Event{Event: "writeback_failed", Model: p, Error: oneLine(err.Error())})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.marked[p], s.paused[p] = s.bytes, true
	time.AfterFunc(retryAfter, func() {
		s.mu.Lock()
		delete(s.paused, p)
		s.change.Broadcast()
		s.mu.Unlock()
	})
}

// Failure is the error of an earlier attempt to write p back, if nobody was told yet.
func (s *Source) Failure(p string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.errs[p]
	delete(s.errs, p)
	return err
}

// Sync makes the file at p durable: content and name. The error of an earlier
// attempt is returned once, as fsync(2) does.
func (s *Source) Sync(p string) error {
	if s.readOnly {
		return s.syncReadOnly(p)
	}
	s.mu.Lock()
	old := s.errs[p]
	delete(s.errs, p)
	delete(s.marked, p)
	s.syncing[p]++
	s.mu.Unlock()
	err := s.reconcile(p, true)
	s.mu.Lock()
	if s.syncing[p]--; s.syncing[p] == 0 {
		delete(s.syncing, p)
	}
	s.mu.Unlock()
	if err != nil {
		s.fail(p, err)
		return err
	}
	return old
}

// syncReadOnly is Sync of a mount that writes nothing: what SOURCE has is durable.
func (s *Source) syncReadOnly(p string) error {
	n, err := s.live.Walk(p)
	if err != nil {
		return err
	}
	defer n.Close()
	if !s.IsCold(n) && !s.clean(p, n) {
		return unix.EROFS
	}
	return nil
}

// reconcile is settle, after which a note about the name has done its duty.
func (s *Source) reconcile(p string, durable bool) error {
	s.one.Lock()
	defer s.one.Unlock()
	err := s.settle(p, durable)
	if err == nil {
		s.caughtUp(p)
		err = s.unkeep(p)
	}
	return err
}

// SyncDir makes the names in a directory durable, with what was renamed into it.
func (s *Source) SyncDir(p string) error {
	if s.readOnly {
		return nil
	}
	s.mu.Lock()
	var here []string
	for q := range s.marked {
		if path.Dir(q) == p {
			here = append(here, q)
		}
	}
	s.mu.Unlock()
	for _, q := range here {
		if err := s.Sync(q); err != nil {
			return err
		}
	}
	s.one.Lock()
	defer s.one.Unlock()
	if err := s.carry(); err != nil && s.waits(p) {
		return err
	}
	if err := s.parents(path.Join(p, "x")); err != nil {
		return err
	}
	return s.syncDirs(p)
}

// Wait returns when nothing is pending, or with the context's error.
func (s *Source) Wait(ctx context.Context) error {
	s.hasten()
	stop := context.AfterFunc(ctx, func() { s.mu.Lock(); s.change.Broadcast(); s.mu.Unlock() })
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.marked) > 0 || s.busy != "" {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.change.Wait()
	}
	return nil
}
