package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// fail keeps the first failure; the others often follow from it.
func (s *soak) fail(op string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = fmt.Errorf("%s: %w", op, err)
	}
}

func (s *soak) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed != nil || s.ctx.Err() != nil
}

// work lets all workers work for a time, and kills the daemon now and then.
func (s *soak) work(d time.Duration, kills bool) {
	end := time.Now().Add(d)
	var all sync.WaitGroup
	for w := range s.workers {
		s.seed++
		r := rand.New(rand.NewPCG(s.seed, uint64(w)))
		all.Go(func() {
			for time.Now().Before(end) && !s.over() {
				s.operation(r)
			}
		})
	}
	r := rand.New(rand.NewPCG(s.seed, 99))
	for kills && !s.over() {
		pause := time.Duration(1+r.IntN(4000)) * time.Millisecond
		if time.Now().Add(pause).After(end) {
			break
		}
		select {
		case <-time.After(pause):
		case <-s.ctx.Done():
		}
		if err := s.kill(); err != nil {
			s.fail("kill", err)
		}
	}
	all.Wait()
}

// kill ends the daemon in the middle of whatever is going on, starts another
// and checks that each name is as it was before the operation on it or after.
func (s *soak) kill() error {
	s.killed.Store(true)
	defer s.killed.Store(false)
	if err := s.m.Kill(); err != nil {
		return err
	}
	s.world.Lock()
	defer s.world.Unlock()
	if err := s.m.Start(s.ctx); err != nil {
		return err
	}
	s.count("kill")
	return s.verifyAll()
}

func (s *soak) count(op string) {
	s.mu.Lock()
	s.counts[op]++
	s.mu.Unlock()
}

// operations by how often they are chosen.
var operations = []struct {
	name   string
	weight int
	do     func(s *soak, r *rand.Rand, a, b *name) error
}{
	{"read", 12, (*soak).read},
	{"walk", 2, (*soak).walk},
	{"load or replace by writing", 4, (*soak).write},
	{"replace by renaming", 4, (*soak).replace},
	{"copy", 3, (*soak).copy},
	{"rename", 3, (*soak).rename},
	{"remove", 2, (*soak).remove},
	{"commit", 4, (*soak).patch},
	{"write into", 2, (*soak).edit},
	{"evict", 2, (*soak).evict},
}

func (s *soak) operation(r *rand.Rand) {
	sum := 0
	for _, op := range operations {
		sum += op.weight
	}
	at, i := r.IntN(sum), 0
	for ; at >= operations[i].weight; i++ {
		at -= operations[i].weight
	}
	op := operations[i]
	s.world.RLock()
	defer s.world.RUnlock()
	err := op.do(s, r, s.names[r.IntN(len(s.names))], s.names[r.IntN(len(s.names))])
	if err != nil && !s.killed.Load() {
		s.fail(op.name, err)
	}
	s.count(op.name)
}

// change does something to a name after which it holds want, and checks it. If
// the daemon is killed meanwhile, it may hold either. Caller holds n.mu.
func (s *soak) change(n *name, want string, do func() error) error {
	old := n.want
	n.want, n.maybe = want, append(n.maybe, old)
	if err := do(); err != nil {
		return err
	}
	if !s.killed.Load() {
		n.maybe = nil
	}
	return s.verify(n)
}

// read checks that a file is one of those that were ever whole, whoever replaces
// it meanwhile.
func (s *soak) read(r *rand.Rand, a, _ *name) error {
	s.commit.RLock()
	defer s.commit.RUnlock()
	f, err := os.Open(s.m.Out(a.p))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, make([]byte, 1+r.IntN(64<<10))); err != nil {
		return err
	}
	sum := fmt.Sprintf("%x", h.Sum(nil))
	if _, ok := s.known.Load(sum); !ok {
		return fmt.Errorf("%s: the content %s was never written", a.p, sum)
	}
	return nil
}

// walk looks at everything, as find does.
func (s *soak) walk(_ *rand.Rand, a, _ *name) error {
	return filepath.WalkDir(s.m.Boot("models"), func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			_, err = d.Info()
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil // renamed or removed meanwhile
		}
		return err
	})
}

// some is a model of the library.
func (s *soak) some(r *rand.Rand) (file, sum string, err error) {
	file = s.library[r.IntN(len(s.library))]
	sum, err = sumOf(file)
	return file, sum, err
}

func put(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

func (s *soak) write(r *rand.Rand, a, _ *name) error {
	file, sum, err := s.some(r)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.want == "" { // a file that did not exist may be there with nothing or a part in it
		if err := put(file, s.m.Out(a.p)+".part"); err != nil {
			return err
		}
		return s.change(a, sum, func() error { return os.Rename(s.m.Out(a.p)+".part", s.m.Out(a.p)) })
	}
	return s.change(a, sum, func() error { return put(file, s.m.Out(a.p)) })
}

func (s *soak) replace(r *rand.Rand, a, _ *name) error {
	file, sum, err := s.some(r)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := put(file, s.m.Out(a.p)+".tmp"); err != nil {
		return err
	}
	return s.change(a, sum, func() error { return os.Rename(s.m.Out(a.p)+".tmp", s.m.Out(a.p)) })
}

// copy copies within the mount, where bytes are shared.
func (s *soak) copy(_ *rand.Rand, a, b *name) error {
	defer lock(a, b)()
	if a == b || a.want == "" {
		return nil
	}
	return s.change(b, a.want, func() error {
		in, err := os.Open(s.m.Out(a.p))
		if err != nil {
			return err
		}
		defer in.Close()
		tmp := s.m.Out(b.p) + ".tmp"
		out, err := os.Create(tmp)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, in) // copy_file_range
		if err := errors.Join(err, out.Close()); err != nil {
			return err
		}
		return os.Rename(tmp, s.m.Out(b.p))
	})
}

func (s *soak) rename(_ *rand.Rand, a, b *name) error {
	defer lock(a, b)()
	if a == b || a.want == "" {
		return nil
	}
	old := a.want
	a.want, a.maybe = "", append(a.maybe, old)
	if err := s.change(b, old, func() error { return os.Rename(s.m.Out(a.p), s.m.Out(b.p)) }); err != nil {
		return err
	}
	if !s.killed.Load() {
		a.maybe = nil
	}
	return s.verify(a)
}

func (s *soak) remove(_ *rand.Rand, a, _ *name) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.want == "" {
		return nil
	}
	return s.change(a, "", func() error { return os.Remove(s.m.Out(a.p)) })
}

// tensor is what a change of one needs.
type tensor struct {
	Name   string `json:"name"`
	Offset int64  `json:"offset"`
	Bytes  int64  `json:"nbytes"`
}

// plan chooses a tensor of a loaded model and new bytes for it; sum is what the
// whole file is then. Caller holds a.mu.
func (s *soak) plan(r *rand.Rand, a *name) (t tensor, data []byte, sum string, err error) {
	var layout struct {
		Tensors []tensor `json:"tensors"`
	}
	text, err := os.ReadFile(s.m.Of(a.p, "layout.json"))
	if err == nil {
		err = json.Unmarshal(text, &layout)
	}
	if err != nil {
		return t, nil, "", err
	}
	file, err := os.ReadFile(s.m.Out(a.p))
	if err != nil {
		return t, nil, "", err
	}
	t = layout.Tensors[r.IntN(len(layout.Tensors))]
	data = make([]byte, t.Bytes)
	for i := range data {
		data[i] = byte(r.UintN(256)) & 0x3f // no infinities
	}
	copy(file[t.Offset:], data)
	sum = fmt.Sprintf("%x", sha256.Sum256(file))
	s.known.Store(sum, true)
	return t, data, sum, nil
}

// patch commits a tensor in place.
func (s *soak) patch(r *rand.Rand, a, _ *name) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.want == "" {
		return nil
	}
	t, data, sum, err := s.plan(r, a)
	if err != nil {
		return err
	}
	return s.change(a, sum, func() error {
		return os.WriteFile(s.m.Of(a.p, "tensors/"+t.Name+"/data"), data, 0)
	})
}

// edit writes into the file as a plain program does, which makes a new one.
func (s *soak) edit(r *rand.Rand, a, _ *name) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.want == "" {
		return nil
	}
	t, data, sum, err := s.plan(r, a)
	if err != nil {
		return err
	}
	return s.change(a, sum, func() error {
		f, err := os.OpenFile(s.m.Out(a.p), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(data, t.Offset)
		return errors.Join(err, f.Close())
	})
}

// evict frees the memory of a model; its next reader, which is the check, brings it back.
func (s *soak) evict(_ *rand.Rand, a, _ *name) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.want == "" {
		return nil
	}
	err := os.WriteFile(s.m.Of(a.p, "ctl"), []byte("evict\n"), 0)
	if errors.Is(err, unix.EBUSY) {
		return nil // something reads it
	}
	return errors.Join(err, s.verify(a))
}
