package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
)

// name is a file of the mount. mu is held by whoever changes what it stands for;
// two names are locked in the order of their paths.
type name struct {
	p string

	mu    sync.Mutex // guards all below
	want  string     // SHA-256 in hexadecimal, "" when there is no such file
	maybe []string   // what it may hold instead, because the daemon was killed meanwhile
}

// lock locks two names, which may be the same.
func lock(a, b *name) (unlock func()) {
	if a.p > b.p {
		a, b = b, a
	}
	a.mu.Lock()
	if a != b {
		b.mu.Lock()
	}
	return func() {
		if a != b {
			b.mu.Unlock()
		}
		a.mu.Unlock()
	}
}

func sumOf(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

// verify checks a name, everywhere it can be read. Caller holds n.mu.
func (s *soak) verify(n *name) error {
	have, err := sumOf(s.m.Out(n.p))
	if errors.Is(err, os.ErrNotExist) {
		have, err = "", nil
	}
	if err != nil {
		return err
	}
	if have != n.want && !slices.Contains(n.maybe, have) {
		return fmt.Errorf("output/%s is %q, want %q or %q", n.p, have, n.want, n.maybe)
	}
	n.want, n.maybe = have, nil
	told, err := os.ReadFile(s.m.Of(n.p, "sha256"))
	switch text := strings.TrimSpace(string(told)); {
	case have == "" && errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case text != have:
		return fmt.Errorf("models/%s/sha256 is %q, want %q", n.p, text, have)
	}
	if sum, err := sumOf(s.m.Of(n.p, "model.gguf")); err != nil || sum != have {
		return fmt.Errorf("models/%s/model.gguf is %q, want %q: %w", n.p, sum, have, err)
	}
	return nil
}

// verifyAll checks all names. Nobody else works.
func (s *soak) verifyAll() error {
	var errs []error
	for _, n := range s.names {
		n.mu.Lock()
		errs = append(errs, s.verify(n))
		n.mu.Unlock()
	}
	return errors.Join(errs...)
}
