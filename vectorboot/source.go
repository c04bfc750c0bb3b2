package vectorboot

import (
	"context"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vbootfs/shm"
)

// workDir holds files of SOURCE that are not whole yet. It is ours alone: it does
// not show in the mount and is emptied at every start.
const workDir = ".vbootfs"

// Source keeps a directory equal to the live tree. The tree is the truth; a name
// that may differ is marked, and one goroutine reconciles marked names: what is
// gone is removed, what changed is copied to workDir, synced and renamed. So a
// crash leaves every name with its old or its new content, never a mixture, and
// reconciling twice does no harm. A failure is reported, kept as the name's
// error for the next fsync, and tried again.
//
// A file is clean when its size and modification time equal those in SOURCE and
// it has no dirty mark; the mark is an extended attribute, so that it survives
// the daemon. A file whose bytes are only in SOURCE has a cold mark instead.
type Source struct {
	Path string

	root        *os.Root
	live        *shm.Node
	store       *shm.Store
	cold, dirty string // names of the marks

	report func(Event)

	// Busy says that somebody has the inode open for writing: it is not copied
	// before they close it, except for fsync. Set before Start.
	Busy func(ino uint64) bool

	readOnly bool // nothing is written back

	mu      sync.Mutex               // guards all below; never held during I/O
	marked  map[string]int64         // name -> bytes that wait
	busy    string                   // the name being reconciled
	bytes   int64                    // its bytes
	errs    map[string]error         // of write-backs that nobody asked for: the next fsync returns it
	paused  map[string]bool          // names that failed and wait to be tried again
	filling map[uint64]chan struct{} // inodes that are being filled; closed at the end
	later   map[string]*time.Timer   // names that wait for a quiet time
	change  *sync.Cond               // something above changed
	closed  bool

	linked map[uint64]string // while adopting: inode of SOURCE with several names -> the first seen

	one  sync.Mutex // held while SOURCE is being changed; taken before mu
	done chan struct{}
	tmp  uint64
}

// OpenSource opens the directory and locks it against a second daemon.
func OpenSource(dir string, store *shm.Store, readOnly bool) (*Source, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	d, err := root.Open(".")
	if err != nil {
		root.Close()
		return nil, err
	}
	defer d.Close()
	s := &Source{
		Path: dir, root: root, live: store.Live, store: store, cold: store.Mark("cold"), dirty: store.Mark("dirty"),
		report: func(Event) {}, Busy: func(uint64) bool { return false }, marked: map[string]int64{}, errs: map[string]error{}, paused: map[string]bool{},
		filling: map[uint64]chan struct{}{}, later: map[string]*time.Timer{}, done: make(chan struct{}),
	}
	s.change = sync.NewCond(&s.mu)
	if s.readOnly = readOnly; readOnly {
		return s, nil
	}
	if err := root.RemoveAll(workDir); err != nil {
		root.Close()
		return nil, err
	}
	if err := root.Mkdir(workDir, 0o700); err != nil {
		root.Close()
		return nil, fmt.Errorf("SOURCE must be writable: %w", err)
	}
	return s, nil
}

// Start brings the two trees together and begins to write back. A fresh store is
// filled with names whose bytes stay in SOURCE; a store left by a killed daemon
// is the truth for the names it has.
func (s *Source) Start(attached bool) error {
	if err := s.adopt(attached); err != nil {
		return err
	}
	go s.run()
	return nil
}

// Dirty marks a file that is about to be written, for the next start after a crash.
func (s *Source) Dirty(n *shm.Node) {
	// Without the mark (no attributes on this tmpfs, no permission) size and
	// time still tell all but writes through a mapping.
	_ = n.Setxattr(s.dirty, []byte("1"), 0)
}

// SyncAs makes the content of a file that has no name yet durable under p.
func (s *Source) SyncAs(p string, n *shm.Node) error {
	s.one.Lock()
	defer s.one.Unlock()
	if err := s.parents(p); err != nil {
		return err
	}
	st, err := n.Stat()
	if err != nil {
		return err
	}
	if err := s.copyOut(p, n, &st, true); err != nil {
		return err
	}
	return s.syncDirs(path.Dir(p))
}

// clean reports whether SOURCE has what the live file has.
func (s *Source) clean(p string, n *shm.Node) bool {
	st, err := n.Stat()
	if err != nil {
		return false
	}
	info, err := s.root.Lstat(p)
	if err != nil || n.HasXattr(s.dirty) {
		return false
	}
	have := info.Sys().(*unixStat)
	if st.Mode&unix.S_IFMT != have.Mode&unix.S_IFMT {
		return false
	}
	return n.Type != unix.S_IFREG || st.Size == have.Size && st.Mtim == unix.Timespec(have.Mtim)
}

// Mark says that SOURCE may differ from the live tree at p.
func (s *Source) Mark(p string) {
	if s.readOnly {
		return
	}
	var size int64
	if n, err := s.live.Walk(p); err == nil {
		if n.Type == unix.S_IFREG && !s.IsCold(n) {
			size = n.Size()
		}
		n.Close()
	}
	s.mu.Lock()
	s.marked[p] = size
	s.change.Broadcast()
	s.mu.Unlock()
}

// quiet is how long a model must go without commits before it is written back:
// each write-back copies the whole file.
const quiet = 2 * time.Second

// MarkLater marks a name once it has been left alone for a while.
func (s *Source) MarkLater(p string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.later[p]; t != nil {
		t.Reset(quiet)
		return
	}
	s.later[p] = time.AfterFunc(quiet, func() {
		s.mu.Lock()
		delete(s.later, p)
		s.mu.Unlock()
		s.Mark(p)
	})
}

// hasten marks at once what waits for its quiet time.
func (s *Source) hasten() {
	s.mu.Lock()
	var names []string
	for p, t := range s.later {
		if t.Stop() {
			names = append(names, p)
		}
	}
	s.later = map[string]*time.Timer{}
	s.mu.Unlock()
	for _, p := range names {
		s.Mark(p)
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
		if err := s.settle(p, false); err != nil {
			s.fail(p, err)
			s.mu.Lock()
			s.errs[p] = err
			s.mu.Unlock()
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

// Sync makes the file at p durable: content and name. The error of an earlier
// attempt is returned once, as fsync(2) does.
func (s *Source) Sync(p string) error {
	s.mu.Lock()
	old := s.errs[p]
	delete(s.errs, p)
	delete(s.marked, p)
	s.mu.Unlock()
	err := s.settle(p, true)
	if err != nil {
		s.fail(p, err)
		return err
	}
	return old
}

// SyncDir makes the names in a directory durable, with what was renamed into it.
func (s *Source) SyncDir(p string) error {
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
	if err := s.parents(path.Join(p, "x")); err != nil {
		return err
	}
	return s.syncDirs(p)
}

// Renamed moves a name in SOURCE at once when it holds there what it holds here;
// otherwise both names are reconciled, the new one first.
func (s *Source) Renamed(from, to string) {
	n, err := s.live.Walk(to)
	if err == nil {
		defer n.Close()
		if n.Type == unix.S_IFDIR || s.IsCold(n) || s.clean(from, n) {
			s.one.Lock()
			if err = s.parents(to); err == nil {
				err = s.root.Rename(from, to)
			}
			s.one.Unlock()
			if err == nil {
				s.moveMarks(from, to)
				return
			}
		}
	}
	s.moveMarks(from, to)
	s.Mark(to)
	s.Mark(from)
}

// moveMarks lets marks below a renamed name follow it.
func (s *Source) moveMarks(from, to string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, b := range s.marked {
		if rest, ok := strings.CutPrefix(p, from); ok && (rest == "" || rest[0] == '/') {
			delete(s.marked, p)
			s.marked[to+rest] = b
		}
	}
	s.change.Broadcast()
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

// Close writes back what is marked, each name once more if it failed, and lets
// the directory go. It returns the first error.
func (s *Source) Close() error {
	s.hasten()
	s.mu.Lock()
	s.closed = true
	s.errs = map[string]error{}
	s.change.Broadcast()
	s.mu.Unlock()
	<-s.done
	_ = s.root.RemoveAll(workDir)
	defer s.root.Close()
	for p, err := range s.errs {
		return fmt.Errorf("%s was not written to SOURCE: %w", p, err)
	}
	return nil
}
