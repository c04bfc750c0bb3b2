package main

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

// TestClockJumps: the clock of the machine is not ours to set, so what a jump leads
// to is made: files that are younger or older than everything else.
func TestClockJumps(t *testing.T) {
	promise(t, semanticsPage, "When the clock jumps, forwards or backwards, nothing waits longer and nothing is lost: only differences of file times count.")
	first, second := makeModel(t, "300K", 1), makeModel(t, "300K", 2)
	source := tempDir(t)
	m := newMount(t, source)
	for _, jump := range []time.Duration{-24 * time.Hour, 10 * 365 * 24 * time.Hour, -time.Hour, -40 * 365 * 24 * time.Hour} {
		at := time.Now().Add(jump)
		m.synced("a.gguf", read(t, first))
		if err := os.Chtimes(m.out("a.gguf"), at, at); err != nil {
			t.Fatal(err)
		}
		m.settled()
		m.check("--full")
		write(t, m.out("b.gguf"), read(t, second)) // is pending, and of now
		must(t, "mv", m.out("b.gguf"), m.out("a.gguf"))
		m.kill()
		m.start(source)
		m.holds("a.gguf", read(t, second))
		m.settled()
		same(t, filepath.Join(source, "a.gguf"), read(t, second))
		if err := os.Chtimes(m.out("a.gguf"), at, at); err != nil {
			t.Fatal(err)
		}
		m.settled()
		write(t, m.boot("models/a.gguf/ctl"), []byte("evict"))
		same(t, m.out("a.gguf"), read(t, second))
		if st, err := os.Stat(m.out("a.gguf")); err != nil || !st.ModTime().Equal(at) {
			t.Errorf("the time of the file is %v, want %v: %v", st.ModTime(), at, err)
		}
		m.check("--full")
	}
}

// wallClock finds what takes the monotonic reading off a time, so that a duration
// computed from it would jump with the clock. A text may show it.
var wallClock = regexp.MustCompile(`\.(Unix(Nano|Milli|Micro)?|Local|In|Round)\(|\.UTC\(\)(\.Format)?`)

func TestDurationsAreMonotonic(t *testing.T) {
	for _, dir := range []string{"shm", "vectorboot", "fs", "fs/tree", "cmd/vbootfs"} {
		names, err := filepath.Glob(filepath.Join("../..", dir, "*.go"))
		if err != nil || len(names) == 0 {
			t.Fatalf("%s: no source: %v", dir, err)
		}
		for _, name := range names {
			for _, use := range wallClock.FindAllString(string(read(t, name)), -1) {
				if use != ".UTC().Format" && !regexp.MustCompile(`_test\.go$`).MatchString(name) {
					t.Errorf("%s uses %s: a duration must come from times of time.Now as they are", name, use)
				}
			}
		}
	}
}
