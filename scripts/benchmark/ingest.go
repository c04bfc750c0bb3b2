package main

import (
	"os"
	"path/filepath"
)

// ingest writes a model until it is loaded: cp has returned.
func (b *bench) ingest(mounted func() (*mount, error)) error {
	m, err := mounted()
	if err != nil {
		return err
	}
	file, err := b.large()
	if err != nil {
		return err
	}
	st, err := os.Stat(file)
	if err != nil {
		return err
	}
	ours, theirs := m.Out("fresh.gguf"), filepath.Join(b.Shm, "fresh.gguf")
	defer os.Remove(ours)
	defer os.Remove(theirs)
	// Each measurement makes a new file.
	fresh := func(f func() ([]float64, error), to string) func() ([]float64, error) {
		return func() ([]float64, error) {
			if err := os.Remove(to); err != nil && !os.IsNotExist(err) {
				return nil, err
			}
			return f()
		}
	}
	for _, c := range []struct {
		name, line string
		goal       float64
	}{
		{"cp", `cp "$1" "$2"`, 1.5},
		{"cat", `cat "$1" >"$2"`, 1},
		{"dd", `dd if="$1" of="$2" bs=1M status=none`, 1},
		{"rsync", `rsync -W "$1" "$2"`, 1},
	} {
		if m.pass() == "off" {
			c.goal = 1
		}
		err := b.compare(pair{name: c.name + b.suffix(), bytes: st.Size(), goal: c.goal,
			ours:   side{c.line, fresh(timed(b.shell(c.line, file, ours)), ours)},
			theirs: side{"to /dev/shm", fresh(timed(b.shell(c.line, file, theirs)), theirs)}})
		if err != nil {
			return err
		}
	}
	python := func(to string) func() ([]float64, error) {
		return func() ([]float64, error) { return b.ask("copyfile", file, to) }
	}
	return b.compare(pair{name: "Python" + b.suffix(), bytes: st.Size(), goal: 1,
		ours:   side{"shutil.copyfile", fresh(python(ours), ours)},
		theirs: side{"to /dev/shm", fresh(python(theirs), theirs)}})
}

// suffix tells rows with and without passthrough apart.
func (b *bench) suffix() string {
	if b.group.number == 11 {
		return ", through the daemon"
	}
	return ""
}
