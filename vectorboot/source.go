package vectorboot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
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
// A file is clean when SOURCE has the file that was written last for it, with
// the same size and modification time, and no note says that it is dirty. A file
// whose bytes are only in SOURCE has a cold mark, an extended attribute that says
// in which file they are.
//
// Other users may change SOURCE meanwhile, by renames and links too. So a file
// there is read and changed only when it is known to be the one that was adopted
// or written (known), or has the same owner and mode as the one that shows it.
type Source struct {
	Path string

	root  *beneath
	live  *shm.Node
	store *shm.Store
	notes *notes
	cold  string // name of the mark

	report func(Event)
	calm   sync.Locker // while it is held no commit changes a file; taken after one

	// Busy says that somebody has the inode open for writing: it is not copied
	// before they close it, except for fsync. Set before Start.
	Busy func(ino uint64) bool

	readOnly bool // nothing is written back

	mu      sync.Mutex               // guards all below; never held during I/O
	marked  map[string]int64         // name -> bytes that wait
	busy    string                   // the name being reconciled
	bytes   int64                    // its bytes
	syncing map[string]int           // names that fsync reconciles, and for how many callers
	errs    map[string]error         // of write-backs that nobody asked for: the next fsync returns it
	paused  map[string]bool          // names that failed and wait to be tried again
	filling map[uint64]chan struct{} // inodes that are being filled; closed at the end
	later   map[string]*time.Timer   // names that wait for a quiet time
	change  *sync.Cond               // something above changed
	closed  bool
	known   map[uint64]identity // live inode -> what it is in SOURCE; cold files have it in their mark
	uneasy  map[identity]bool   // files of SOURCE that a cold name was given to which SOURCE may not have

	linked map[identity]string // while adopting: file of SOURCE with several names -> the first seen

	started bool // by Start

	one  sync.Mutex // held while SOURCE is being changed; taken before the lock of notes and mu
	done chan struct{}
	tmp  uint64              // guarded by one
	kept map[identity]string // files in workDir that a cold name needs, and that name; guarded by one
}

// OpenSource opens the directory and locks it against a second daemon.
func OpenSource(dir string, store *shm.Store, readOnly bool) (*Source, error) {
	root, err := openBeneath(dir, !readOnly)
	if err != nil {
		return nil, err
	}
	s := &Source{
		Path: dir, root: root, live: store.Live, store: store, cold: store.Mark("cold"), readOnly: readOnly,
		report: func(Event) {}, calm: new(sync.Mutex), Busy: func(uint64) bool { return false }, marked: map[string]int64{}, errs: map[string]error{}, syncing: map[string]int{}, paused: map[string]bool{},
		filling: map[uint64]chan struct{}{}, later: map[string]*time.Timer{}, done: make(chan struct{}),
		known: map[uint64]identity{}, uneasy: map[identity]bool{}, kept: map[identity]string{},
	}
	s.change = sync.NewCond(&s.mu)
	if s.notes, err = openNotes(store); err != nil {
		root.Close()
		return nil, fmt.Errorf("notes in shared memory: %w", err)
	}
	if readOnly {
		return s, nil
	}
	err = root.mkdir(workDir, 0o700)
	if errors.Is(err, unix.EEXIST) {
		err = s.ownWorkDir()
	}
	if err != nil {
		s.notes.close()
		root.Close()
		return nil, fmt.Errorf("SOURCE must be writable: %w", err)
	}
	return s, nil
}

// ownWorkDir makes sure that the directory which an earlier daemon left, or
// somebody made for us, is one in which nobody else can put anything.
func (s *Source) ownWorkDir() error {
	_, st, err := s.root.stat(workDir)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != unix.Geteuid() || st.Mode&0o077 != 0 {
		return fmt.Errorf("%s is not a directory of our own with mode 0700: %w", workDir, unix.EPERM)
	}
	name := path.Join(workDir, "test") // a file system that was made read-only
	_ = s.root.remove(name)
	f, err := s.root.create(name)
	if err != nil {
		return err
	}
	f.Close()
	return s.root.remove(name)
}

// Start brings the two trees together and begins to write back. A fresh store is
// filled with names whose bytes stay in SOURCE; a store left by a killed daemon
// is the truth for the names it has, and for those that it noted as gone.
func (s *Source) Start(attached bool) error {
	if err := s.begin(attached); err != nil {
		return err
	}
	s.started = true
	go s.run()
	return nil
}

func (s *Source) begin(attached bool) error {
	s.one.Lock()
	defer s.one.Unlock()
	if !s.readOnly {
		if err := s.carry(); err != nil {
			s.report(Event{Event: "writeback_failed", Error: oneLine(err.Error())})
		}
	}
	if err := s.adopt(attached); err != nil {
		return err
	}
	if s.readOnly {
		return nil
	}
	if attached {
		if err := s.reunite(); err != nil {
			return err
		}
	}
	s.caughtUpOthers()
	return s.emptyWorkDir()
}

// emptyWorkDir removes what an earlier daemon left half written. Caller holds one.
func (s *Source) emptyWorkDir() error {
	ents, err := s.root.names(workDir)
	if err != nil {
		return err
	}
	for _, e := range ents {
		p := path.Join(workDir, e.Name())
		if err := s.root.removeAll(p, func(string) error { return nil }); err != nil {
			return err
		}
	}
	return nil
}

// Dirty says that a file is about to be written, for the next start after a crash.
func (s *Source) Dirty(n *shm.Node) {
	if !s.readOnly {
		s.noted(s.notes.mark(n.Ino))
	}
}

// SyncAs makes the content of a file that has no name yet durable under p.
func (s *Source) SyncAs(p string, n *shm.Node) error {
	s.one.Lock()
	defer s.one.Unlock()
	if err := s.carry(); err != nil && s.waits(p) {
		return err
	}
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
	return s.alike(p, n) && !s.notes.isDirty(n.Ino)
}

// alike is clean but for stores through a mapping, which leave no trace in the times.
func (s *Source) alike(p string, n *shm.Node) bool {
	st, err := n.Stat()
	if err != nil {
		return false
	}
	id, have, err := s.root.stat(p)
	if err != nil || !s.ours(n, &st, id, &have) {
		return false
	}
	return n.Type != unix.S_IFREG || st.Size == have.Size && st.Mtim == have.Mtim
}

// ours reports whether a file of SOURCE is the one that stands for a live file.
// One that is not known to be (a daemon was killed) is taken for it when whoever
// may read or change the one may do so with the other.
func (s *Source) ours(n *shm.Node, st *unix.Stat_t, id identity, have *unix.Stat_t) bool {
	if st.Mode&unix.S_IFMT != have.Mode&unix.S_IFMT {
		return false
	}
	if want, cold := s.coldID(n); cold {
		return want == id
	}
	s.mu.Lock()
	want, ok := s.known[n.Ino]
	s.mu.Unlock()
	switch {
	case want == id:
		return true
	case unix.Geteuid() != 0:
		return !ok || n.Type != unix.S_IFREG
	case st.Uid != have.Uid || st.Gid != have.Gid:
		return false
	}
	return n.Type != unix.S_IFREG || !ok && st.Mode == have.Mode
}

// know remembers which file of SOURCE stands for a live one.
func (s *Source) know(n *shm.Node, id identity) {
	s.mu.Lock()
	s.known[n.Ino] = id
	s.mu.Unlock()
}

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

// Close writes back what is marked, each name once more if it failed, and lets
// the directory go. It returns the first error.
func (s *Source) Close() error {
	if !s.started {
		s.notes.close()
		s.root.Close()
		return nil
	}
	s.hasten()
	s.mu.Lock()
	s.closed = true
	s.errs = map[string]error{}
	s.change.Broadcast()
	s.mu.Unlock()
	<-s.done
	defer s.root.Close()
	defer s.notes.close()
	for p, err := range s.errs {
		return fmt.Errorf("%s was not written to SOURCE: %w", p, err)
	}
	if s.readOnly {
		return nil
	}
	s.one.Lock()
	defer s.one.Unlock()
	if err := s.carry(); err != nil {
		return fmt.Errorf("a rename was not carried out in SOURCE: %w", err)
	}
	if s.emptyWorkDir() == nil {
		_ = s.root.remove(workDir) // what is left there is emptied by the next start
	}
	return nil
}
