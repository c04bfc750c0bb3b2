package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

const semanticsPage = "docs/SEMANTICS.md"

// mark is a moment of a run: what was durable then, and how many records the disk
// had seen.
type mark struct {
	records int
	durable map[string]int // version of each name whose fsync had returned
}

// powerRun writes files and notes what was durable when.
type powerRun struct {
	t        *testing.T
	d        *testDisk
	versions [][]byte
	marks    []mark
	cheat    bool // fsyncs of the daemon do nothing
	r        *rand.Rand
}

var powerNames = []string{"a.gguf", "d/b.gguf", "note"}

// TestPowerLoss lets the power fail at many points while files are written and
// synced, with the writes that were not flushed lost or torn, and starts a daemon
// on what is left.
func TestPowerLoss(t *testing.T) {
	promise(t, semanticsPage, "After `fsync()` of a file has returned, its bytes and its name survive a power failure, whole.")
	promise(t, semanticsPage, "After a power failure each file of SOURCE is one version that was written, whole, never a mixture.")
	p := newPowerRun(t)
	p.run(10)
	for range setting(t, "VBOOTFS_POWER_CUTS", 8) {
		i := p.r.IntN(len(p.marks) - 1)
		p.atCut(i, func(m *mount, have map[string]int) {
			for name, v := range p.marks[i].durable {
				if have[name] < v {
					t.Errorf("mark %d: %s is version %d, and %d was synced", i, name, have[name], v)
				}
			}
			m.settled()
			m.check("--full")
		})
	}
}

// TestPowerLossWithoutSync is the control: when the daemon's fsyncs do nothing, files
// are lost, or the other test could not fail.
func TestPowerLossWithoutSync(t *testing.T) {
	p := newPowerRun(t)
	must(t, "mount", "-o", "remount,commit=600", p.d.mnt) // the journal is not written by itself
	p.cheat = true
	p.run(3)
	lost := 0
	p.atCut(2, func(_ *mount, have map[string]int) {
		for name, v := range p.marks[2].durable {
			if have[name] < v {
				lost++
			}
		}
	})
	if lost == 0 {
		t.Error("nothing was lost although nothing was synced")
	}
}

func newPowerRun(t *testing.T) *powerRun {
	p := &powerRun{t: t, d: newDisk(t, 48), r: rand.New(rand.NewPCG(setting(t, "VBOOTFS_POWER_SEED", 1), 5))}
	for i := range 4 {
		p.versions = append(p.versions, read(t, makeModel(t, "300K", i)))
	}
	return p
}

// run writes and syncs each name some times. Between two marks are one write and its fsync.
func (p *powerRun) run(writes int) {
	p.t.Helper()
	m := newMount(p.t, p.d.mnt)
	must(p.t, "mkdir", m.out("d"))
	if p.cheat {
		defer m.inject("fsync:retval=0")()
	}
	durable := map[string]int{}
	p.mark(durable)
	for i := range writes {
		name, v := powerNames[i%len(powerNames)], i/len(powerNames)%len(p.versions)
		if err := writeSynced(m.out(name), p.versions[v]); err != nil {
			p.t.Fatal(err)
		}
		durable[name] = v + 1
		p.mark(durable)
	}
	m.stop()
	p.mark(durable)
}

func (p *powerRun) mark(durable map[string]int) {
	m := mark{p.d.records(), map[string]int{}}
	for k, v := range durable {
		m.durable[k] = v
	}
	p.marks = append(p.marks, m)
}

// atCut lets the power fail between a mark and the next, and starts a daemon on
// what is left. The function gets the version of each name, 0 for none.
func (p *powerRun) atCut(i int, look func(m *mount, have map[string]int)) {
	p.t.Helper()
	seed := p.r.Uint64()
	from, to := p.marks[i].records, p.marks[i+1].records
	cut := from + p.r.IntN(to-from+1)
	p.t.Logf("cut %d of %d, seed %d", cut, to, seed)
	p.d.detach()
	p.d.attach(p.d.cut(cut, seed))
	m := newMount(p.t, p.d.mnt)
	have := map[string]int{}
	for _, name := range powerNames {
		content, err := os.ReadFile(m.out(name))
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			p.t.Error(err)
		}
		if have[name] = p.version(content); have[name] == 0 {
			p.t.Errorf("cut %d, seed %d: %s has %d bytes that nobody wrote", cut, seed, name, len(content))
		}
	}
	look(m, have)
	m.stop()
	p.noLeftovers()
}

// version is the number of a content, from 1 on.
func (p *powerRun) version(content []byte) int {
	for i, v := range p.versions {
		if string(v) == string(content) {
			return i + 1
		}
	}
	return 0
}

func (p *powerRun) noLeftovers() {
	p.t.Helper()
	left, err := filepath.Glob(filepath.Join(p.d.mnt, workDir, "*"))
	if err != nil || len(left) > 0 {
		p.t.Error(fmt.Sprint("left in SOURCE: ", left, err))
	}
}
