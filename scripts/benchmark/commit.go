package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
)

// ways is what bench_commit.py prints: the time from before a write until another
// process has read the new tensor, in microseconds.
type ways map[string]struct {
	Median float64 `json:"median_us"`
	Min    float64 `json:"min_us"`
	Max    float64 `json:"max_us"`
}

func (w ways) text(way string) string {
	t := w[way]
	return fmt.Sprintf("%s (%s–%s)", secondsText(t.Median/1e6), secondsText(t.Min/1e6), secondsText(t.Max/1e6))
}

// commits measures how long a changed tensor of 1 MiB takes to be seen, through the Python example.
func (b *bench) commits() error {
	m, err := b.main()
	if err != nil {
		return err
	}
	mib := max(min(b.size, 1<<30)>>20, 129) // below, the example has only the one tensor
	out, err := exec.CommandContext(b.ctx, b.python, "examples/python/bench_commit.py", "--mount", m.Dir,
		"--size-mib", strconv.FormatInt(mib, 10), "--rounds", strconv.Itoa(2*b.rounds)).Output()
	var r struct{ Ways ways }
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		return fmt.Errorf("bench_commit.py: %w", err)
	}
	name := fmt.Sprintf("1 MiB tensor of %d MiB changed until seen", mib)
	for _, p := range []struct {
		way, what string
		goal      float64
	}{{"cp", "cp of the whole file over the old one in /dev/shm", 100}, {"gguf-py", "gguf-py writes a new file in /dev/shm", 0}} {
		for _, ours := range []struct{ way, what string }{{"draft", "a draft"}, {"tensor", "write of tensors/NAME/data"}} {
			if r.Ways[ours.way].Median == 0 || r.Ways[p.way].Median == 0 {
				return fmt.Errorf("bench_commit.py says nothing of %s and %s", ours.way, p.way)
			}
			b.add(line{what: name, ours: ours.what, oursValue: r.Ways.text(ours.way), theirs: p.what, theirsValue: r.Ways.text(p.way),
				ratio: r.Ways[p.way].Median / r.Ways[ours.way].Median, goal: p.goal})
		}
	}
	return nil
}
