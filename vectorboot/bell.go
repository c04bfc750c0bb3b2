package vectorboot

import (
	"errors"
	"sync"
)

// ErrWait says that there is nothing to read yet. Whoever got it is called when
// that may have changed.
var ErrWait = errors.New("nothing yet")

// bell calls those who wait for something. No goroutine waits for it: a wait is an
// entry in a list.
type bell struct {
	mu   sync.Mutex // guards list
	list map[*func()]struct{}
}

// watch has f called whenever the bell rings, until stop. A ring that is on its way
// when stop is called may still come. f must not wait, and take no lock that anybody
// holds who rings.
func (b *bell) watch(f func()) (stop func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.list == nil {
		b.list = map[*func()]struct{}{}
	}
	b.list[&f] = struct{}{}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.list, &f)
	}
}

// ring calls everybody, with no lock of this package that belongs to what is watched.
func (b *bell) ring() {
	b.mu.Lock()
	calls := make([]func(), 0, len(b.list))
	for f := range b.list {
		calls = append(calls, *f)
	}
	b.mu.Unlock()
	for _, f := range calls {
		f()
	}
}
