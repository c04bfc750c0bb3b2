package vectorboot

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"vbootfs/ggufview"
)

// A whole is a model that consists of several files, NAME-00001-of-00003.gguf
// and so on. It is no entry of the registry: its name, NAME.gguf, is free there,
// and what it is follows from the shards each time somebody asks. So no change
// of a shard has to be carried over, and a whole holds memory only while it is
// used. Its generation is the sum of those of its shards: every change adds.

// Whole splits the path of a shard: the path of its whole, its number from 1 on,
// and how many there are. It follows llama.cpp's pattern "%s-%05d-of-%05d.gguf".
func Whole(p string) (whole string, no, of int, ok bool) {
	const tail = len("-00001-of-00002.gguf")
	at := len(p) - tail
	if at < 1 || p[at] != '-' || p[at+6:at+10] != "-of-" || p[at+15:] != ".gguf" {
		return "", 0, 0, false
	}
	i, err := strconv.ParseUint(p[at+1:at+6], 10, 32)
	n, err2 := strconv.ParseUint(p[at+10:at+15], 10, 32)
	whole = p[:at] + ".gguf"
	return whole, int(i), int(n), err == nil && err2 == nil && 1 <= i && i <= n && n >= 2 && Loadable(whole)
}

// shards is what there is of a set.
type shards struct {
	whole  string
	of     int
	models map[int]*Model // by number
}

// name is the path of a shard.
func (s *shards) name(no int) string {
	return fmt.Sprintf("%s-%05d-of-%05d.gguf", strings.TrimSuffix(s.whole, ".gguf"), no, s.of)
}

// shards finds the set of a whole, nil if there is none or the name is that of a
// model. Of several, with other numbers of shards, it is the one that lacks the
// fewest. Caller holds mu.
func (rt *Runtime) shards(whole string) (best *shards) {
	if rt.models[whole] != nil {
		return nil
	}
	prefix, sets := strings.TrimSuffix(whole, ".gguf")+"-", map[int]*shards{}
	for p, m := range rt.models {
		if !strings.HasPrefix(p, prefix) {
			continue
		}
		w, no, of, ok := Whole(p)
		if !ok || w != whole {
			continue
		}
		if sets[of] == nil {
			sets[of] = &shards{whole, of, map[int]*Model{}}
		}
		sets[of].models[no] = m
	}
	for _, s := range sets {
		if best == nil || s.lacks() < best.lacks() || s.lacks() == best.lacks() && s.of > best.of {
			best = s
		}
	}
	return best
}

func (s *shards) lacks() int { return s.of - len(s.models) }

// state is why the whole can not be used, Loaded or Cold if it can. Caller holds mu.
func (s *shards) state() (State, error) {
	var missing []string
	for no := 1; no <= s.of && len(missing) < 8 && s.lacks() > 0; no++ {
		if s.models[no] == nil {
			missing = append(missing, path.Base(s.name(no)))
		}
	}
	if more := s.lacks() - len(missing); more > 0 {
		missing = append(missing, fmt.Sprintf("and %d more", more))
	}
	if missing != nil {
		return Failed, errors.New("missing: " + strings.Join(missing, ", "))
	}
	state := Loaded
	for no := 1; no <= s.of; no++ {
		switch m := s.models[no]; {
		case m.cur == nil && m.state == Failed:
			return Failed, fmt.Errorf("%s: %s", path.Base(m.path), m.failed)
		case m.cur == nil:
			return m.state, fmt.Errorf("%s is not there yet", path.Base(m.path))
		case m.cur.Cold:
			state = Cold
		}
	}
	return state, nil
}

// acquire takes a hold on every shard. Caller holds mu.
func (s *shards) acquire() (parts []*Generation, err error) {
	if _, err := s.state(); err != nil {
		return nil, err
	}
	for no := 1; no <= s.of; no++ {
		g := s.models[no].cur
		g.Acquire()
		parts = append(parts, g)
	}
	return parts, nil
}

// joined remembers the header of each whole that was asked for, as long as its
// shards are the same. It holds none of them.
type joined struct {
	mu     sync.Mutex // guards wholes
	wholes map[string]*join
}

type join struct {
	parts []*Generation // only to be compared, unless g is in use
	g     *Generation
	err   error
}

// join makes the whole of its shards, which it takes over.
func (j *joined) join(p string, parts []*Generation) (*Generation, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	w := j.wholes[p]
	if w == nil || !slices.Equal(w.parts, parts) {
		w = &join{parts: parts}
		w.g, w.err = newWhole(p, parts)
		if j.wholes == nil {
			j.wholes = map[string]*join{}
		}
		j.wholes[p] = w
	}
	if w.err != nil || w.g.refs.Add(1) > 1 { // in use: it has its holds already
		release(parts)
	}
	return w.g, w.err
}

// forget drops what is remembered of the whole of a shard that went away.
func (j *joined) forget(shard string) {
	if whole, _, _, ok := Whole(shard); ok {
		j.mu.Lock()
		delete(j.wholes, whole)
		j.mu.Unlock()
	}
}

func release(parts []*Generation) {
	for _, g := range parts {
		g.Release()
	}
}

func newWhole(p string, parts []*Generation) (g *Generation, err error) {
	defer Guard(&err)()
	files, views := make([]*ggufview.File, len(parts)), make([]ggufview.View, len(parts))
	g = &Generation{Path: p, parts: parts}
	begin := time.Now()
	for i, part := range parts {
		files[i], views[i] = part.Info, part
		g.N += part.N
		g.Cold = g.Cold || part.Cold
		if part.Loaded.After(g.Loaded) {
			g.Loaded = part.Loaded
		}
	}
	if g.Info, g.view, err = ggufview.Merge(files, views); err != nil {
		return nil, err
	}
	g.Took = time.Since(begin)
	return g, nil
}

// acquireWhole is Acquire for a name that is no model's.
func (rt *Runtime) acquireWhole(p string) (*Generation, error) {
	rt.mu.RLock()
	s := rt.shards(p)
	if s == nil {
		rt.mu.RUnlock()
		return nil, ErrNoModel
	}
	parts, err := s.acquire()
	rt.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	return rt.joined.join(p, parts)
}

// wholeInfo is Info for a name that is no model's.
func (rt *Runtime) wholeInfo(p string) (Info, bool) {
	rt.mu.RLock()
	s := rt.shards(p)
	if s == nil {
		rt.mu.RUnlock()
		return Info{}, false
	}
	i := Info{Path: p}
	var err error
	i.State, err = s.state()
	for _, m := range s.models {
		if m.cur != nil && !m.cur.Cold {
			i.Bytes += m.cur.Info.Size
		}
	}
	rt.mu.RUnlock()
	if err == nil {
		var g *Generation
		if g, err = rt.acquireWhole(p); err == nil {
			i.Generation, i.Want = g.N, g.Info.Size
			if i.State == Loaded {
				i.Bytes = i.Want
			}
			g.Release()
		} else {
			i.State = Failed
		}
	}
	if err != nil && i.State == Failed {
		i.Error = oneLine(err.Error())
	}
	return i, true
}

// addWholes adds the paths of wholes to a list of models. Caller holds mu.
func (rt *Runtime) addWholes(paths []string) []string {
	seen := map[string]bool{}
	for _, p := range paths {
		if whole, _, _, ok := Whole(p); ok && !seen[whole] && rt.models[whole] == nil {
			seen[whole] = true
			paths = append(paths, whole)
		}
	}
	return paths
}

// Files are the paths of the files that a model consists of, as far as they are there.
func (rt *Runtime) Files(p string) (files []string) {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	s := rt.shards(p)
	if s == nil {
		return []string{p}
	}
	for _, m := range s.models {
		files = append(files, m.path)
	}
	slices.Sort(files)
	return files
}
