package vectorboot

import (
	"errors"
	"fmt"
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
	s.linked = map[identity]string{}
	defer func() { s.linked = nil }()
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
	clear(s.kept) // each name has its bytes again
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
	_, ok := s.alike(p, n)
	return ok && !s.notes.isDirty(n.Ino)
}

// alike is clean but for stores through a mapping, which leave no trace in the
// times. The identity is that of the file it looked at: another may be there by now.
func (s *Source) alike(p string, n *shm.Node) (id identity, ok bool) {
	st, err := n.Stat()
	if err != nil {
		return id, false
	}
	id, have, err := s.root.stat(p)
	if err != nil || !s.ours(n, &st, id, &have) {
		return id, false
	}
	return id, n.Type != unix.S_IFREG || st.Size == have.Size && st.Mtim == have.Mtim
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
