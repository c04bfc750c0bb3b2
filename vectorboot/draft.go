package vectorboot

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"sync"

	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
	"vbootfs/shm"
)

// Draft collects changes to a model until they are committed together. It locks
// nothing: a client that dies leaves a directory, not a blocked model.
type Draft struct {
	Name   string
	Serial uint64 // no other draft of this process has it
	rt     *Runtime
	m      *Model

	mu      sync.Mutex // guards all below
	tensors map[string]*TensorEdit
	keys    map[string]*KeyEdit
	perm    *Perm // of drafts/D/ctl, nil: as the model's file says
	gone    bool
	busy    bool // a commit is using what is staged
}

// maxDrafts bounds the drafts of one model.
const maxDrafts = 1000

// NewDraft begins a draft.
func (rt *Runtime) NewDraft(p, name string) error {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	m := rt.models[p]
	switch {
	case m == nil || m.cur == nil:
		return ErrNoModel
	case m.drafts[name] != nil:
		return unix.EEXIST
	case len(m.drafts) >= maxDrafts:
		return unix.ENOSPC
	}
	m.drafts[name] = &Draft{Name: name, Serial: rt.draftID.Add(1), rt: rt, m: m, tensors: map[string]*TensorEdit{}, keys: map[string]*KeyEdit{}}
	return nil
}

// Draft finds a draft, nil when there is none.
func (rt *Runtime) Draft(p, name string) *Draft {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	if m := rt.models[p]; m != nil {
		return m.drafts[name]
	}
	return nil
}

// Drafts lists the drafts of a model.
func (rt *Runtime) Drafts(p string) (names []string) {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	if m := rt.models[p]; m != nil {
		for name := range m.drafts {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names
}

// Abort ends a draft and forgets what was staged.
func (rt *Runtime) Abort(p, name string) error {
	rt.mu.Lock()
	var d *Draft
	if m := rt.models[p]; m != nil {
		d = m.drafts[name]
		delete(m.drafts, name)
	}
	rt.mu.Unlock()
	if d == nil {
		return unix.ENOENT
	}
	d.drop()
	return nil
}

// drop frees what was staged, or leaves that to the commit that is using it.
func (d *Draft) drop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gone = true
	if !d.busy {
		d.reset()
	}
}

func (d *Draft) reset() {
	for _, e := range d.tensors {
		e.File.Close()
	}
	d.tensors, d.keys = map[string]*TensorEdit{}, map[string]*KeyEdit{}
}

// usable says why nothing can be staged or committed now. Caller holds mu.
func (d *Draft) usable() error {
	switch {
	case d.gone:
		return fmt.Errorf("draft %s is gone: %w", d.Name, unix.ENOENT)
	case d.busy:
		return fmt.Errorf("draft %s is being committed: %w", d.Name, unix.EBUSY)
	}
	return nil
}

// Stage puts the stored bytes of a tensor into the draft. It takes over file.
func (d *Draft) Stage(name string, file *shm.Node, base uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(); err != nil {
		file.Close()
		return err
	}
	if old := d.tensors[name]; old != nil {
		old.File.Close()
		base = min(base, old.Base) // what it was first made from
	}
	d.tensors[name] = &TensorEdit{Name: name, File: file, Base: base}
	return nil
}

// StageKey puts a key into the draft; a nil value removes it.
func (d *Draft) StageKey(key string, value any, base uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(); err != nil {
		return err
	}
	if old := d.keys[key]; old != nil {
		base = min(base, old.Base)
	}
	d.keys[key] = &KeyEdit{KeyEdit: ggufview.KeyEdit{Key: key, Value: value}, Base: base}
	return nil
}

// Tensor is a second handle of what is staged for a tensor, nil when nothing is.
// The caller closes it.
func (d *Draft) Tensor(name string) (*shm.Node, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.tensors[name]
	if e == nil {
		return nil, nil
	}
	return e.File.Dup()
}

// Key is what is staged for a key.
func (d *Draft) Key(key string) (value any, staged bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if k := d.keys[key]; k != nil {
		return k.Value, true
	}
	return nil, false
}

// Staged lists what the draft changes, "tensors/NAME" and "metadata/KEY".
func (d *Draft) Staged() (names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range d.tensors {
		names = append(names, "tensors/"+name)
	}
	for key := range d.keys {
		names = append(names, "metadata/"+key)
	}
	sort.Strings(names)
	return names
}

// Commit applies the draft, all or nothing. Afterwards it is empty and can be
// used again; after an error it is as it was.
//
// It is for the model that it was made for, under whatever name that has by now,
// and for no other.
func (d *Draft) Commit(p string) error {
	tensors, keys, err := d.take()
	if err != nil {
		return err
	}
	err = d.rt.commit(target{path: p, m: d.m}, tensors, keys)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.busy = false
	if err == nil || d.gone {
		d.reset()
	}
	return err
}

// Perm is an owner and the permission bits of a file.
type Perm struct{ UID, GID, Mode uint32 }

// Perm is who may commit the draft, nil when nobody has said.
func (d *Draft) Perm() *Perm {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.perm
}

// SetPerm says who may commit the draft.
func (d *Draft) SetPerm(p Perm) {
	d.mu.Lock()
	d.perm = &p
	d.mu.Unlock()
}

// Clear forgets what is staged; the draft stays.
func (d *Draft) Clear() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(); err != nil {
		return err
	}
	d.reset()
	return nil
}

// take makes the draft busy and lists what is staged, in order of name.
func (d *Draft) take() (tensors []TensorEdit, keys []KeyEdit, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(); err != nil {
		return nil, nil, err
	}
	if len(d.tensors)+len(d.keys) == 0 {
		return nil, nil, fmt.Errorf("draft %s is empty: %w", d.Name, unix.EINVAL)
	}
	for _, name := range slices.Sorted(maps.Keys(d.tensors)) {
		tensors = append(tensors, *d.tensors[name])
	}
	for _, key := range slices.Sorted(maps.Keys(d.keys)) {
		keys = append(keys, *d.keys[key])
	}
	d.busy = true
	return tensors, keys, nil
}

// SetPolicy sets a model's guards.
func (rt *Runtime) SetPolicy(p string, policy Policy) error {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	m := rt.models[p]
	if m == nil {
		return ErrNoModel
	}
	m.policy = policy
	return nil
}

// Policy is a model's guards.
func (rt *Runtime) Policy(p string) Policy {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	if m := rt.models[p]; m != nil {
		return m.policy
	}
	return rt.policy
}

// SetDefaultPolicy sets the guards of models that are loaded from now on.
func (rt *Runtime) SetDefaultPolicy(policy Policy) {
	rt.mu.Lock()
	rt.policy = policy
	rt.mu.Unlock()
}

// Control is the file of a model's control page, nil when nothing was loaded.
// The caller closes it.
func (rt *Runtime) Control(p string) (*shm.Node, error) {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	m := rt.models[p]
	if m == nil || m.page == nil {
		return nil, ErrNoModel
	}
	return m.page.Node.Dup()
}

// AttachedSessions counts the sessions of all models.
func (rt *Runtime) AttachedSessions() int64 { return rt.sessions.Load() }
