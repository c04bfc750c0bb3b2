package vectorboot

import (
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

// resumeNumber continues the numbering that an earlier process left.
func (rt *Runtime) resumeNumber(p string, n *shm.Node) {
	buf := make([]byte, 20)
	k, err := n.Getxattr(rt.store.Mark("generation"), buf)
	if err != nil {
		return
	}
	if v, err := strconv.ParseUint(string(buf[:k]), 10, 64); err == nil && v > 0 {
		rt.mu.Lock()
		rt.model(p).next = v
		rt.mu.Unlock()
	}
}

// Recover registers every model of the live tree: those that a killed daemon
// left in memory, and those whose bytes are still in SOURCE. What was half
// written is a failed model, or NAME.rejected when it was meant to replace one.
func (rt *Runtime) Recover() error {
	if err := rt.recoverStage(); err != nil {
		return err
	}
	return Walk(rt.store.Live, ".", func(p string, n *shm.Node) {
		if n.Type != unix.S_IFREG {
			return
		}
		n.Trim() // a killed daemon did not
		if !Loadable(p) || n.Size() == 0 {
			return
		}
		var g *Generation
		var err error
		if rt.source != nil && rt.source.IsCold(n) {
			g, err = rt.source.Judge(p, n)
		} else {
			rt.resumeNumber(p, n)
			g, err = Judge(n)
		}
		if err != nil {
			rt.tell(rt.Fail(p, err))
			return
		}
		rt.tell(rt.Publish(p, g))
	})
}

// recoverStage completes commits, keeps what was being received for a name and
// removes scratch copies.
func (rt *Runtime) recoverStage() error {
	ents, err := rt.store.Stage.Names()
	if err != nil {
		return err
	}
	for _, e := range ents {
		n, err := rt.store.Stage.Lookup(e.Name)
		if err != nil {
			return err
		}
		if strings.HasPrefix(e.Name, journalPrefix) {
			err = rt.redo(n)
		} else {
			rt.recoverStaged(n, e.Name)
		}
		if err != nil {
			n.Close()
			return err
		}
		n.Close()
		_ = rt.store.Stage.Unlink(e.Name) // gone if it was kept
	}
	return nil
}

func (rt *Runtime) recoverStaged(n *shm.Node, name string) {
	buf := make([]byte, unix.PathMax)
	k, err := n.Getxattr(rt.store.Mark("for"), buf)
	if err != nil || n.Size() == 0 {
		return
	}
	p := string(buf[:k])
	dir, err := rt.store.Live.Walk(path.Dir(p))
	if err != nil {
		return // its directory is gone too
	}
	defer dir.Close()
	rt.ClearTarget(n)
	if rt.store.Stage.Rename(name, dir, path.Base(p)+".rejected", 0) == nil && rt.source != nil {
		rt.source.Mark(p + ".rejected")
	}
}
