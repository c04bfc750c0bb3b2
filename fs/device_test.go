package fs

import (
	"sync"
	"sync/atomic"
	"testing"
)

// Whatever comes between, somebody waits for the next request: a loop that was free,
// or the one that is started by who was the last to get a request.
func TestSomebodyWaits(t *testing.T) {
	for range 2000 {
		var d device
		d.idle.Store(Readers)
		var next atomic.Int32
		var all sync.WaitGroup
		for range Readers {
			all.Go(func() { // gets a request
				if d.idle.Add(-1) == 0 {
					next.Add(1)
				}
			})
			all.Go(func() { // becomes free
				if d.wanted() {
					next.Add(1)
				}
			})
		}
		all.Wait()
		if next.Load() == 0 {
			t.Fatal("nobody waits for a request")
		}
		if n := d.idle.Load(); n < 0 || n > Readers {
			t.Fatalf("%d wait", n)
		}
	}
}
