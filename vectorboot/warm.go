package vectorboot

import (
	"context"
	"errors"
	"time"

	"vbootfs/shm"
)

// Warm brings the bytes of a cold file into memory, in place, before it is
// opened; other files are left alone. It returns ENOSPC when they do not fit.
func (rt *Runtime) Warm(ctx context.Context, node *shm.Node) error {
	if rt.source == nil || !rt.source.IsCold(node) {
		return nil
	}
	begin := time.Now()
	rt.Names.Lock() // the name must mean the same here and in SOURCE
	p, ok := node.Path()
	if !ok {
		rt.Names.Unlock()
		return errors.New("the file was removed before it was read")
	}
	f, err := rt.source.Open(p, node)
	rt.Names.Unlock()
	if err == errWarm {
		return nil // by somebody else, meanwhile
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := rt.source.fillOnce(ctx, f, p, node); err != nil {
		return err
	}
	if !Loadable(p) {
		return nil
	}
	g, err := Judge(node)
	if err != nil {
		rt.tell(rt.Fail(p, err))
		return nil // the bytes are readable as a file all the same
	}
	g.Took = time.Since(begin)
	if rt.warmed(p, g) {
		rt.tell([]Change{{Path: p}})
	}
	return nil
}

// WarmAll is Warm for every file of a generation.
func (rt *Runtime) WarmAll(ctx context.Context, g *Generation) error {
	for _, s := range g.Segments() {
		if err := rt.Warm(ctx, s.Node); err != nil {
			return err
		}
	}
	return nil
}

// Load brings a cold model into memory.
func (rt *Runtime) Load(ctx context.Context, p string) error {
	g := rt.Acquire(p)
	if g == nil {
		return ErrNoModel
	}
	defer g.Release()
	return rt.WarmAll(ctx, g)
}

// Sync waits until SOURCE has everything.
func (rt *Runtime) Sync(ctx context.Context) error {
	if rt.source == nil {
		return nil
	}
	return rt.source.Wait(ctx)
}

// warmed replaces a cold generation by the loaded one of the same number, and
// reports whether the model still wants it.
func (rt *Runtime) warmed(p string, g *Generation) bool {
	rt.change.Lock() // a commit writes its own number on the segment
	defer rt.change.Unlock()
	rt.mu.Lock()
	m := rt.models[p]
	if m == nil || m.cur == nil || m.cur.Seg.Ino != g.Seg.Ino {
		rt.mu.Unlock()
		g.Release()
		return false
	}
	old := m.cur
	g.N, g.Path, g.m = old.N, p, m
	m.cur = g
	m.set(Loaded)
	rt.mu.Unlock()
	g.Seg.note(rt.store.Mark("generation"), g.N)
	old.Release()
	rt.count("load", g, 0)
	return true
}
