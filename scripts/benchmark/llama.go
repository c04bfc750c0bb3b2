package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"vbootfs/scripts/frame"
)

// llama loads models with llama.cpp, a process for each measurement.
func (b *bench) llama() error {
	m, err := b.main()
	if err != nil {
		return err
	}
	for _, c := range []struct {
		name  string
		model func() (string, error)
	}{
		{"gemma 3 270M Q4_K_M", b.real},
		{"generated F16", b.large},
	} {
		file, err := c.model()
		if err == nil {
			err = b.llamaRows(m, c.name, file)
		}
		if b.ctx.Err() != nil {
			return b.ctx.Err()
		}
		if err != nil {
			b.add(line{what: "llama.cpp " + c.name, note: "not measured: " + frame.FirstLine(err.Error())})
		}
	}
	return nil
}

func (b *bench) llamaRows(m *mount, name, file string) error {
	base := filepath.Base(file)
	shm := filepath.Join(b.Shm, base)
	if err := m.load(file, base); err != nil {
		return err
	}
	if _, err := os.Stat(shm); err != nil {
		if err := copyFile(file, shm); err != nil {
			return err
		}
	}
	defer func() { _ = b.drop(m, base, "large.gguf") }()
	for _, peer := range []struct{ where, file string }{{"/dev/shm", shm}, {"the page cache of ext4", file}} {
		err := b.compare(pair{name: "llama.cpp, " + name + ", load and first token", goal: 1, rounds: 3,
			ours:   side{"output/", b.llamaLoad(m.Out(base))},
			theirs: side{"from " + peer.where, b.llamaLoad(peer.file)}})
		if err != nil {
			return err
		}
	}
	return nil
}

// drop removes a model here and there, unless others need it.
func (b *bench) drop(m *mount, name, keep string) error {
	if name == keep {
		return nil
	}
	return errors.Join(os.Remove(m.Out(name)), os.Remove(filepath.Join(b.Shm, name)))
}

// llamaLoad is the seconds from the call until there is a token.
func (b *bench) llamaLoad(file string) func() ([]float64, error) {
	return func() ([]float64, error) {
		cmd := exec.CommandContext(b.ctx, b.python, "-c", llamaPy, file)
		cmd.Env = plainEnv()
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("llama.cpp: %w", err)
		}
		var r struct{ Load, First float64 }
		err = json.Unmarshal(out, &r)
		return []float64{r.Load + r.First}, err
	}
}
