package vectorboot

import (
	"errors"
	"maps"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"vbootfs/shm"
)

// A directory, a file whose bytes are only in SOURCE and one that SOURCE has as it
// is are renamed in SOURCE, too; nothing else would do for the first two. What
// cannot be done at once waits in notes, in order, and no name that a waiting
// rename is about is reconciled before it.

// Renamed says that a name was renamed in the live tree. A file that SOURCE has
// not as it is now is written anew, and only then the old name removed.
func (s *Source) Renamed(from, to string) {
	n, err := s.live.Walk(to)
	if err != nil || s.readOnly {
		return
	}
	whole := n.Type == unix.S_IFDIR || s.IsCold(n) || s.clean(from, n)
	n.Close()
	s.follow(func(p string) (string, bool) {
		rest, ok := below(p, from)
		return to + rest, ok
	})
	if !whole {
		s.Mark(to)
		s.Mark(from)
		return
	}
	s.pend(move{from: from, to: to})
	s.notes.mu.Lock()
	if s.notes.gone[from] { // the rename tells what became of it
		_ = s.notes.add('G', from) // a start looks at what is there before it believes a note
	}
	s.notes.mu.Unlock()
}

// Exchanged says that two names were exchanged (RENAME_EXCHANGE).
func (s *Source) Exchanged(a, b string) {
	if s.readOnly {
		return
	}
	s.follow(func(p string) (string, bool) {
		if rest, ok := below(p, a); ok {
			return b + rest, true
		}
		rest, ok := below(p, b)
		return a + rest, ok
	})
	s.pend(move{a, b, true})
	s.Mark(a)
}

// pend notes a rename and carries it out, unless SOURCE is busy with something
// else: then whoever reconciles next does.
func (s *Source) pend(m move) {
	kind := byte('r')
	if m.swap {
		kind = 'x'
	}
	s.notes.mu.Lock()
	err := s.notes.add(kind, m.from, m.to)
	s.notes.mu.Unlock()
	s.noted(err)
	if s.one.TryLock() {
		err := s.carry()
		s.one.Unlock()
		if err == nil && !m.swap {
			return
		}
	}
	s.Mark(m.to)
}

// carry carries out the renames that wait, up to the first that fails. Caller holds one.
func (s *Source) carry() error {
	for {
		waiting := s.notes.pending()
		if len(waiting) == 0 {
			return nil
		}
		if err := s.move(waiting[0]); err != nil {
			return err
		}
		s.notes.mu.Lock()
		err := s.notes.add('R', "")
		s.notes.mu.Unlock()
		s.noted(err)
	}
}

// move carries out one rename. Done before, it does nothing.
func (s *Source) move(m move) error {
	_, from, err := s.root.stat(m.from)
	if err != nil && m.swap {
		return s.move(move{from: m.to, to: m.from})
	}
	if err != nil {
		return gone(err) // SOURCE never had it: it is marked
	}
	if err := s.parents(m.to); err != nil {
		return err
	}
	_, to, err := s.root.stat(m.to)
	switch {
	case err != nil && gone(err) != nil:
		return err
	case err == nil && m.swap:
		return s.swap(m)
	case err == nil && (from.Mode|to.Mode)&unix.S_IFMT != unix.S_IFREG:
		if err := s.root.removeAll(m.to, s.spare); err != nil {
			return err
		}
	case err == nil:
		if err := s.spare(m.to); err != nil {
			return err
		}
	}
	return s.root.rename(m.from, m.to, 0)
}

// swap exchanges two names, in three steps where the file system cannot do it in one.
func (s *Source) swap(m move) error {
	err := s.root.rename(m.from, m.to, unix.RENAME_EXCHANGE)
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	tmp := s.workName()
	if err := s.root.rename(m.from, tmp, 0); err != nil {
		return err
	}
	if err := s.root.rename(m.to, m.from, 0); err != nil {
		return errors.Join(err, s.root.rename(tmp, m.from, 0))
	}
	return s.root.rename(tmp, m.to, 0)
}

// waits reports whether a rename that waits is about p, something below or above it.
func (s *Source) waits(p string) bool {
	for _, m := range s.notes.pending() {
		for _, q := range []string{m.from, m.to} {
			_, in := below(p, q)
			_, over := below(q, p)
			if in || over || p == "." {
				return true
			}
		}
	}
	return false
}

// formerly is what SOURCE still calls a name while renames wait.
func (s *Source) formerly(p string) string {
	waiting := s.notes.pending()
	for i := len(waiting) - 1; i >= 0; i-- {
		m := waiting[i]
		if rest, ok := below(p, m.to); ok {
			p = m.from + rest
		} else if rest, ok := below(p, m.from); ok && m.swap {
			p = m.to + rest
		}
	}
	return p
}

// follow gives what is pending of a name to the one that it has now, if to knows one.
func (s *Source) follow(to func(p string) (string, bool)) {
	s.notes.mu.Lock()
	defer s.notes.mu.Unlock()
	var err error
	for p := range maps.Clone(s.notes.gone) {
		if q, ok := to(p); ok && p != s.notes.leaving {
			err = errors.Join(err, s.notes.add('G', p), s.notes.add('g', q))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, t := range s.later { // is not made to wait again
		if _, ok := to(p); ok {
			t.Stop()
			delete(s.later, p)
			s.marked[p] = 0
		}
	}
	s.marked, s.errs = moved(s.marked, to), moved(s.errs, to)
	busy := slices.AppendSeq([]string{s.busy}, maps.Keys(s.syncing))
	for _, p := range busy { // who reconciles it now does not find it any more
		if q, ok := to(p); ok && p != "" {
			s.marked[q] = 0
		}
	}
	s.change.Broadcast()
	defer s.noted(err)
}

func moved[T any](m map[string]T, to func(p string) (string, bool)) map[string]T {
	out := make(map[string]T, len(m))
	for p, v := range m {
		if q, ok := to(p); ok {
			p = q
		}
		out[p] = v
	}
	return out
}

// noted reports that a note could not be written: should the daemon be killed now, names may
// come back that were removed.
func (s *Source) noted(err error) {
	if err != nil {
		s.report(Event{Event: "writeback_failed", Error: oneLine("a note for the next start: " + err.Error())})
	}
}

// spare is asked before the file at p in SOURCE goes or is replaced. If a live name
// has its bytes nowhere else, they stay: under that name, or for as long as that
// one shows them in workDir. Caller holds one.
func (s *Source) spare(p string) error {
	id, st, err := s.root.stat(p)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || s.kept[id] != "" {
		return gone(err)
	}
	q, err := s.neededAt(p, id)
	switch {
	case err != nil:
		return err
	case q == "":
		return nil
	case q == p:
		return s.keep(p, id, p)
	}
	if have, _, err := s.root.stat(q); err == nil && have == id {
		return nil
	}
	if err := s.keep(p, id, q); err != nil { // what stands at q may be what p needs
		return err
	}
	if err := s.parents(q); err != nil {
		return err
	}
	if err := s.linkTo(p, q); err != nil {
		return err
	}
	return s.unkeep(q)
}

// keep gives a file of SOURCE a name in workDir for a cold name that needs it. Caller holds one.
func (s *Source) keep(p string, id identity, at string) error {
	if err := s.root.link(p, keepName(id)); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	s.kept[id] = at
	return nil
}

// keepPrefix begins the names in workDir of files that a cold name still needs.
const keepPrefix = "keep-"

func keepName(id identity) string { return path.Join(workDir, keepPrefix+id.String()) }

// neededAt is a live name that has its bytes in this file of SOURCE, p if it is one, "" if there is none.
func (s *Source) neededAt(p string, id identity) (at string, err error) {
	if n, err := s.live.Walk(p); err == nil {
		have, cold := s.coldID(n)
		n.Close()
		if cold && have == id {
			return p, nil
		}
	}
	s.mu.Lock()
	uneasy := s.uneasy[id]
	s.mu.Unlock()
	if !uneasy {
		return "", nil
	}
	return s.coldName(id)
}

// coldName is a live name whose bytes are in this file of SOURCE, "" if there is none.
func (s *Source) coldName(id identity) (at string, err error) {
	err = Walk(s.live, ".", func(q string, n *shm.Node) {
		if have, cold := s.coldID(n); cold && have == id {
			at = q
		}
	})
	return at, err
}
