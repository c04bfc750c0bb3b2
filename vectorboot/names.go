package vectorboot

import (
	"strings"
)

// Remove unloads path; readers that hold its generation keep it.
func (rt *Runtime) Remove(p string) []Change {
	rt.change.Lock() // a commit may be using the control page
	defer rt.change.Unlock()
	rt.mu.Lock()
	m := rt.models[p]
	delete(rt.models, p)
	rt.retire(p)
	if whole, _, _, ok := Whole(p); ok {
		rt.retire(whole)
	}
	rt.mu.Unlock()
	if m == nil {
		return nil
	}
	rt.joined.forget(p)
	rt.end(m)
	if m.cur != nil {
		rt.Events.Add(Event{Event: "unload", Model: p, Generation: m.cur.N})
		m.cur.Release()
	}
	return []Change{{Path: p, Gone: true}}
}

// end lets go of what belongs to a model's name. Caller holds change.
func (rt *Runtime) end(m *Model) {
	rt.dropPast(m)
	m.hub.end()
	for _, d := range m.drafts {
		d.drop()
	}
	if m.page != nil {
		_ = rt.store.Control.Unlink(controlName(m.path))
		m.page.close()
	}
}

// retire lets go of the active model when it went away; the newest load that is
// left takes its place. Caller holds mu.
func (rt *Runtime) retire(p string) {
	if rt.active != p {
		return
	}
	rt.active, rt.chosen = "", false
	var best *Model
	for _, m := range rt.models {
		if m.cur != nil && (best == nil || m.cur.Loaded.After(best.cur.Loaded)) {
			best = m
		}
	}
	if best != nil {
		rt.active = best.path
	}
}

// below reports whether p is dir or lies below it, and what follows dir.
func below(p, dir string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(p, dir)
	return rest, ok && (rest == "" || rest[0] == '/')
}

// Move renames a model, or every model below a directory, with everything that
// belongs to the name. A model that had the new name already gets the moved file
// as its next generation: who waits for it, waits for the name.
func (rt *Runtime) Move(from, to string) (changes []Change) {
	if rt.Known(to) {
		g, _ := rt.acquire(from)
		changes = rt.Remove(from)
		if g == nil {
			return append(changes, rt.Remove(to)...)
		}
		return append(changes, rt.Publish(to, g.clone())...)
	}
	rt.change.Lock() // a commit is for the model that has the name when it begins
	defer rt.change.Unlock()
	rt.mu.Lock()
	moved := map[string]string{}
	for p := range rt.models {
		if rest, ok := below(p, from); ok {
			moved[p] = to + rest
		}
	}
	for p, q := range moved {
		rt.move(p, q)
	}
	rt.mu.Unlock()
	for p, q := range moved {
		rt.joined.forget(p)
		// Without the file under the new name a crash makes readers map it again.
		_ = rt.store.Control.Rename(controlName(p), rt.store.Control, controlName(q), 0)
		rt.Events.Add(Event{Event: "rename", Model: q, From: p})
		changes = append(changes, Change{Path: p, Gone: true}, Change{Path: q, Gone: true})
	}
	return changes
}

// move is Move of one name to a free one. Caller holds mu.
func (rt *Runtime) move(from, to string) {
	m := rt.models[from]
	delete(rt.models, from)
	m.path = to
	if m.cur != nil {
		m.cur = m.cur.renamed(to)
	}
	rt.models[to] = m
	if rt.active == from {
		rt.active = to
	}
}

// Swap exchanges two names (RENAME_EXCHANGE), directories with all below them.
// Each name gets what the other had as its next generation. fromA and fromB, if
// not nil, are what was no model under the one name and is one under the other.
func (rt *Runtime) Swap(a, b string, fromA, fromB *Generation) []Change {
	ga, gb := rt.gather(a, fromA), rt.gather(b, fromB)
	return append(rt.scatter(a, gb, ga), rt.scatter(b, ga, gb)...)
}

// gather takes a hold on the generations at and below a path, by the rest of
// theirs. It takes over extra.
func (rt *Runtime) gather(dir string, extra *Generation) map[string]*Generation {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	out := map[string]*Generation{}
	for p, m := range rt.models {
		if rest, ok := below(p, dir); ok && m.cur != nil {
			m.cur.Acquire()
			out[rest] = m.cur
		}
	}
	if extra != nil {
		out[""] = extra
	}
	return out
}

// scatter publishes copies of what came below dir, and removes what was there.
func (rt *Runtime) scatter(dir string, came, was map[string]*Generation) (changes []Change) {
	for rest := range was { // of a plain name this removes nothing
		if came[rest] == nil || !Loadable(dir+rest) {
			changes = append(changes, rt.Remove(dir+rest)...)
		}
	}
	for rest, g := range came {
		if Loadable(dir + rest) {
			changes = append(changes, rt.Publish(dir+rest, g.clone())...)
		} else {
			g.Release()
		}
	}
	return changes
}
