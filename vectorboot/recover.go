package vectorboot

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vbootfs/shm"
)

// NoteTarget writes on a staged file which name it is meant for, so that its
// bytes are not lost with the daemon.
func (rt *Runtime) NoteTarget(n *shm.Node, p string) {
	_ = n.Setxattr(rt.store.Mark("for"), []byte(p), 0) // without attributes the bytes go with a crash
}

// ClearTarget forgets the note: the file has its name.
func (rt *Runtime) ClearTarget(n *shm.Node) { _ = n.Removexattr(rt.store.Mark("for")) }

// numberMark is the generation of a model that was evicted, on its placeholder:
// that is not the segment of a generation, so it may be filled and written.
const numberMark = "number"

// noted is the generation that is written on a segment, 0 if none is.
func (rt *Runtime) noted(n *shm.Node) uint64 { return rt.number(n, "generation") }

func (rt *Runtime) number(n *shm.Node, mark string) uint64 {
	buf := make([]byte, 20)
	k, err := n.Getxattr(rt.store.Mark(mark), buf)
	if err != nil {
		return 0
	}
	v, err := strconv.ParseUint(string(buf[:k]), 10, 64)
	if err != nil {
		return 0
	}
	return v
}

// resumeNumber continues the numbering that an earlier process left.
func (rt *Runtime) resumeNumber(p string, n *shm.Node) {
	if v := cmp.Or(rt.noted(n), rt.number(n, numberMark)); v > 0 {
		rt.mu.Lock()
		rt.model(p).next = v
		rt.mu.Unlock()
	}
}

// Recover registers every model of the live tree: those that a killed daemon
// left in memory, and those whose bytes are still in SOURCE. Mend comes first.
func (rt *Runtime) Recover() error {
	err := Walk(rt.store.Live, ".", func(p string, n *shm.Node) {
		if n.Type != unix.S_IFREG {
			return
		}
		n.Trim() // a killed daemon did not
		if !Loadable(p) || n.Size() == 0 {
			return
		}
		rt.resumeNumber(p, n)
		var g *Generation
		var err error
		if rt.source != nil && rt.source.IsCold(n) {
			g, err = rt.source.Judge(p, n)
		} else {
			g, err = Judge(n)
		}
		if err != nil {
			rt.tell(rt.Fail(p, err))
			return
		}
		rt.tell(rt.Publish(p, g))
	})
	if err != nil {
		return err
	}
	return rt.dropPages()
}

// dropPages removes control pages of names that a killed daemon removed or renamed
// just before it could remove or rename their pages.
func (rt *Runtime) dropPages() error {
	ents, err := rt.store.Control.Names()
	if err != nil {
		return err
	}
	used := map[string]bool{}
	rt.mu.RLock()
	for p, m := range rt.models {
		used[controlName(p)] = m.page != nil
	}
	rt.mu.RUnlock()
	for _, e := range ents {
		if !used[e.Name] {
			if err := rt.store.Control.Unlink(e.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// Mend puts in order what a killed daemon was doing, before anybody looks at the
// live tree, write-back included: it completes commits, keeps what was being
// received for a name as NAME.rejected or as a failed model, and removes scratch
// copies. Commits that cannot be completed are returned; they are no reason not
// to go on.
func (rt *Runtime) Mend() (damaged []error, err error) {
	ents, err := rt.store.Stage.Names()
	if err != nil {
		return nil, err
	}
	journals, rest := []string{}, []string{}
	for _, e := range ents {
		switch {
		case strings.HasPrefix(e.Name, journalPrefix):
			journals = append(journals, e.Name)
		case !strings.HasPrefix(e.Name, damagedPrefix):
			rest = append(rest, e.Name)
		}
	}
	for _, name := range journals {
		if err := rt.staged(name, rt.redo); err != nil {
			damaged = append(damaged, rt.quarantine(name, err))
			continue
		}
		_ = rt.store.Stage.Unlink(name)
	}
	for _, name := range rest {
		if err := rt.staged(name, rt.recoverStaged); err != nil {
			return damaged, err
		}
		_ = rt.store.Stage.Unlink(name) // gone if it was kept
	}
	return damaged, nil
}

// staged looks at a file of Store.Stage.
func (rt *Runtime) staged(name string, f func(*shm.Node, string) error) error {
	n, err := rt.store.Stage.Lookup(name)
	if err != nil {
		return err
	}
	defer n.Close()
	return f(n, name)
}

// quarantine puts a journal aside that cannot be followed, and the model too if
// its commit had begun: it is between two generations.
func (rt *Runtime) quarantine(name string, cause error) error {
	number := strings.TrimPrefix(name, journalPrefix)
	if err := rt.store.Stage.Rename(name, rt.store.Stage, damagedPrefix+number, 0); err != nil {
		cause = errors.Join(cause, err)
	}
	ino, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		ino = 0
	}
	seg, p := rt.segment(ino)
	err = fmt.Errorf("commit to %q cannot be completed: %w", p, cause)
	if seg != nil {
		defer seg.Close()
		if rt.begun(p) {
			err = errors.Join(err, rt.reject(p))
		}
	}
	rt.Events.Add(Event{Event: "journal_damaged", Model: p, Error: oneLine(err.Error())})
	return err
}

// begun reports whether a commit to a model may have changed some of its bytes:
// its control page, if there is one, tells.
func (rt *Runtime) begun(p string) bool {
	page, err := rt.store.Control.Lookup(controlName(p))
	if err != nil {
		return true
	}
	defer page.Close()
	var sequence [8]byte
	if _, err := page.ReadAt(sequence[:], ctlSequence); err != nil {
		return true
	}
	return sequence[0]%2 != sequence[7]%2 // odd, in either byte order, of a number below 2^56
}

// reject takes the name from a file whose bytes are of no generation.
func (rt *Runtime) reject(p string) error {
	dir, err := rt.store.Live.Walk(path.Dir(p))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Rename(path.Base(p), dir, path.Base(p)+".rejected", 0)
}

func (rt *Runtime) recoverStaged(n *shm.Node, name string) error {
	buf := make([]byte, unix.PathMax)
	k, err := n.Getxattr(rt.store.Mark("for"), buf)
	if err != nil || n.Size() == 0 {
		return nil
	}
	p := string(buf[:k])
	dir, err := rt.store.Live.Walk(path.Dir(p))
	if err != nil {
		return nil // its directory is gone too
	}
	defer dir.Close()
	rt.ClearTarget(n)
	if rt.store.Stage.Rename(name, dir, path.Base(p)+".rejected", 0) == nil && rt.source != nil {
		rt.source.Mark(p + ".rejected")
	}
	return nil
}
