package main

import "testing"

// TestLargeViewsAreExact: large views are read past the page cache and mapped
// through it; both give the same.
func TestLargeViewsAreExact(t *testing.T) {
	py := python(t)
	for _, opts := range [][]string{nil, {"no_passthrough"}} {
		m := newMount(t, "none", opts...)
		if out, code := m.run(py, "testdata/large_view.py", m.out(""), m.boot(""), tempDir(t)); code != 0 {
			t.Errorf("%v: %s", opts, out)
		}
	}
}
