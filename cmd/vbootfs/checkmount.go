package main

import (
	"bytes"
	"encoding/json"
	"errors"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strings"

	"vbootfs/vectorboot"
)

// mountCheck looks at a mountpoint.
type mountCheck struct {
	*checker
	out, boot string
	store     string          // root of the segment store, "" while no model tells
	models    map[string]bool // paths of the models; true: they have a generation
}

func (c *checker) mounted(dir string) {
	m := &mountCheck{
		checker: c, out: filepath.Join(dir, "geometry_os_v7/output"), boot: filepath.Join(dir, "vector_boot"),
		models: map[string]bool{},
	}
	status, err := lines(filepath.Join(m.boot, "status"))
	if err != nil || status["state"] != "running" {
		m.find(m.boot, "status says %q: %v", status["state"], err)
		return
	}
	m.walk(filepath.Join(m.boot, "models"), "")
	m.active()
	m.events()
	m.files()
	if m.store != "" {
		(&storeCheck{checker: c, root: m.store, out: m.out}).all()
	}
	switch {
	case status["source"] == "none":
	case status["pending_files"] != "0":
		m.note(dir, "%s files are pending: SOURCE was not compared", status["pending_files"])
	default:
		(&treeCheck{checker: c, out: m.out, source: status["source"], store: m.store}).all()
	}
}

// walk finds the directories of models, which may lie in directories.
func (m *mountCheck) walk(dir, p string) {
	ents, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, iofs.ErrNotExist) {
		m.find(dir, "%v", err)
	}
	for _, e := range ents {
		sub, q := filepath.Join(dir, e.Name()), filepath.Join(p, e.Name())
		if _, err := os.Lstat(filepath.Join(sub, "state")); err != nil {
			m.walk(sub, q)
			continue
		}
		c := &modelCheck{checker: m.checker, p: q, dir: sub, out: filepath.Join(m.out, q)}
		c.all()
		m.models[q] = c.layout.Generation > 0
		if seg := c.layout.Segment.Path; seg != nil {
			m.root(sub, *seg, q)
		}
	}
}

// root learns where segments are from that of a model.
func (m *mountCheck) root(dir, seg, p string) {
	root, ok := strings.CutSuffix(seg, "/live/"+strings.ToValidUTF8(p, "\ufffd"))
	if !ok || m.store != "" && m.store != root {
		m.find(dir, "the segment path %q is not that of the model", seg)
		return
	}
	m.store = root
}

// active must be a model while there is one.
func (m *mountCheck) active() {
	name := filepath.Join(m.boot, "active")
	target, err := os.Readlink(name)
	if err != nil {
		m.find(name, "%v", err)
		return
	}
	p := strings.TrimPrefix(strings.TrimPrefix(target, "models"), "/")
	var some bool
	for _, has := range m.models {
		some = some || has
	}
	if has := m.models[p]; has != some {
		m.find(name, "leads to %q, models with a generation: %v", target, some)
	}
}

// events must count up by one.
func (m *mountCheck) events() {
	name := filepath.Join(m.boot, "events.log")
	b, err := os.ReadFile(name)
	if err != nil {
		m.find(name, "%v", err)
		return
	}
	var last uint64
	for line := range bytes.Lines(b) {
		var e vectorboot.Event
		if err := json.Unmarshal(line, &e); err != nil {
			m.find(name, "not an event: %q: %v", line, err)
			return
		}
		if last != 0 && e.Seq != last+1 {
			m.find(name, "event %d follows %d", e.Seq, last)
		}
		last = e.Seq
	}
}

// files checks that every file that is a model has its directory, and the reverse.
func (m *mountCheck) files() {
	seen := map[string]bool{}
	err := filepath.WalkDir(m.out, func(p string, d iofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(m.out, p)
		if err != nil || !loadable(p, d) {
			return err
		}
		seen[rel] = true
		if st, err := d.Info(); err == nil && st.Size() > 0 && !m.known(rel) {
			m.find(p, "a file that is no model, and no failed one either")
		}
		return nil
	})
	if err != nil {
		m.find(m.out, "%v", err)
	}
	for p, has := range m.models {
		if has && !seen[p] && !m.whole(p, seen) {
			m.find(filepath.Join(m.boot, "models", p), "a model without a file")
		}
	}
}

func (m *mountCheck) known(p string) bool { _, ok := m.models[p]; return ok }

// whole reports whether a model is there because of its shards.
func (m *mountCheck) whole(p string, files map[string]bool) bool {
	for f := range files {
		if w, _, _, ok := vectorboot.Whole(f); ok && w == p {
			return true
		}
	}
	return false
}

func loadable(p string, d iofs.DirEntry) bool {
	return d.Type().IsRegular() && vectorboot.Loadable(p)
}
