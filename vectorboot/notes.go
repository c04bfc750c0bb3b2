package vectorboot

import (
	"bytes"
	"maps"
	"strconv"
	"strings"
	"sync"

	"vbootfs/shm"
)

// notes tell the next start what SOURCE does not know yet, should this daemon be
// killed: names that are gone, renames that are to be carried out, and inodes
// that may have been written without a trace in their times. They lie beside the
// files in shared memory, so they live as long as these do; a reboot takes both.
//
// The file is a log of records, each a letter and strings that end in NUL:
//
//	g NAME   gone            G NAME   SOURCE knows, or the name is there again
//	d INO    may be dirty    D INO    written back
//	r A B    A became B      R        the oldest rename is carried out
//	x A B    A and B were exchanged (R, too)
//
// The file is larger than its records; what follows is zeros. An incomplete record at the end counts as not written. The log is rewritten when
// most of it is history, so it is bounded by what is pending.
type notes struct {
	mu    sync.Mutex // guards all below; taken before Source.mu
	store *shm.Store
	log   *shm.Node
	end   int64 // where the next record goes

	gone  map[string]bool
	dirty map[uint64]bool
	moves []move

	leaving string // a name that is about to go; its note is not dropped before it is known whether it went
}

// move is a rename that SOURCE has not seen yet.
type move struct {
	from, to string
	swap     bool
}

// notesName is the log in Store.Notes. notesRoom is its least size in bytes; it
// is reserved, so that what frees memory can be noted when there is none.
const (
	notesName = "log"
	notesRoom = 64 << 10
)

// openNotes reads what an earlier process left and begins a new log with it.
func openNotes(store *shm.Store) (*notes, error) {
	k := &notes{store: store, gone: map[string]bool{}, dirty: map[uint64]bool{}}
	if old, err := store.Notes.Lookup(notesName); err == nil {
		b := make([]byte, old.Size())
		n, _ := old.ReadAt(b, 0)
		old.Close()
		k.replay(b[:n])
	}
	return k, k.rewrite()
}

// replay does what the records say.
func (k *notes) replay(b []byte) {
	for len(b) > 0 && b[0] != 0 {
		kind, fields := b[0], 1
		if kind == 'r' || kind == 'x' {
			fields = 2
		}
		b = b[1:]
		var f [2]string
		for i := range fields {
			s, rest, ok := bytes.Cut(b, []byte{0})
			if !ok {
				return
			}
			f[i], b = string(s), rest
		}
		k.apply(kind, f[0], f[1])
	}
}

// apply does one record in memory. Caller holds mu, or is the only one.
func (k *notes) apply(kind byte, a, b string) {
	ino, _ := strconv.ParseUint(a, 10, 64)
	switch kind {
	case 'g':
		k.gone[a] = true
	case 'G':
		delete(k.gone, a)
	case 'd':
		k.dirty[ino] = true
	case 'D':
		delete(k.dirty, ino)
	case 'r', 'x':
		k.moves = append(k.moves, move{a, b, kind == 'x'})
	case 'R':
		if len(k.moves) > 0 {
			k.moves = k.moves[1:]
		}
	}
}

func record(kind byte, fields ...string) string {
	return string(kind) + strings.Join(fields, "\x00") + "\x00"
}

// add does a record and writes it down. An error means that it counts for this
// process only. Caller holds mu.
func (k *notes) add(kind byte, fields ...string) error {
	var f [2]string
	copy(f[:], fields)
	k.apply(kind, f[0], f[1])
	rec := record(kind, fields...)
	if k.end+int64(len(rec)) > max(notesRoom, 4*k.size()) {
		return k.rewrite()
	}
	if _, err := k.log.WriteAt([]byte(rec), k.end); err != nil {
		return err
	}
	k.end += int64(len(rec))
	return nil
}

// size is about how many bytes the state takes.
func (k *notes) size() int64 { return int64(len(k.gone)+len(k.moves))*64 + int64(len(k.dirty))*12 }

// rewrite replaces the log by one that has the state only. Caller holds mu, or is the only one.
func (k *notes) rewrite() error {
	const fresh = notesName + ".new"
	k.purge()
	_ = k.store.Notes.Unlink(fresh)
	n, err := k.store.Notes.Create(fresh, 0o600, nil)
	if err != nil {
		return err
	}
	text := k.text()
	if err = n.Allocate(0, 0, max(notesRoom, int64(len(text)))); err == nil {
		_, err = n.WriteAt([]byte(text), 0)
	}
	n.Trim() // the reservation may have taken a huge page
	if err == nil {
		err = k.store.Notes.Rename(fresh, k.store.Notes, notesName, 0)
	}
	if err != nil {
		n.Close()
		return err
	}
	if k.log != nil {
		k.log.Close()
	}
	k.log, k.end = n, int64(len(text))
	return nil
}

func (k *notes) text() string {
	var b strings.Builder
	for p := range k.gone {
		b.WriteString(record('g', p))
	}
	for ino := range k.dirty {
		b.WriteString(record('d', strconv.FormatUint(ino, 10)))
	}
	for _, m := range k.moves {
		kind := byte('r')
		if m.swap {
			kind = 'x'
		}
		b.WriteString(record(kind, m.from, m.to))
	}
	return b.String()
}

// purge forgets inodes that were removed before they were written back.
func (k *notes) purge() {
	const few = 1024
	if len(k.dirty) < few {
		return
	}
	here := map[uint64]bool{}
	for _, dir := range []*shm.Node{k.store.Live, k.store.Stage} {
		err := Walk(dir, ".", func(_ string, n *shm.Node) { here[n.Ino] = true })
		if err != nil {
			return
		}
	}
	maps.DeleteFunc(k.dirty, func(ino uint64, _ bool) bool { return !here[ino] })
}

// close lets the log go; it stays for the next start.
func (k *notes) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.log != nil {
		k.log.Close()
		k.log = nil
	}
}

// mark notes that an inode may be written without a trace, clear that it was
// written back.
func (k *notes) mark(ino uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dirty[ino] {
		return nil
	}
	return k.add('d', strconv.FormatUint(ino, 10))
}

func (k *notes) clear(ino uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dirty[ino] {
		_ = k.add('D', strconv.FormatUint(ino, 10)) // written back twice does no harm
	}
}

func (k *notes) isDirty(ino uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.dirty[ino]
}

// leave notes that a name is about to go, and returns what to call when it is known
// whether it went. Names go one at a time.
func (k *notes) leave(p string) (settled func(went bool), err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.leaving = p
	was := k.gone[p]
	if !was {
		err = k.add('g', p)
	}
	return func(went bool) {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.leaving = ""
		if !went && !was && k.gone[p] {
			_ = k.add('G', p) // a start looks at what is there before it believes a note
		}
	}, err
}

// isGone reports whether a name, or a directory above it, was removed.
func (k *notes) isGone(p string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.gone[p]
}

// pending is a copy of the renames that are to be carried out, the oldest first.
func (k *notes) pending() []move {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]move(nil), k.moves...)
}
