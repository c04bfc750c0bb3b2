package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"vbootfs/scripts/frame"
)

// change runs the clients in examples/ that measure commits and interrupts.
func (b *bench) change() error {
	return errors.Join(b.interrupts(), b.commits())
}

// interrupts measures how long an answer takes, through the Rust example.
func (b *bench) interrupts() error {
	const what = "interrupt to answer"
	crate := "examples/rust/vector_boot"
	if _, err := exec.LookPath("cargo"); err != nil {
		b.add(line{what: what, note: "not measured: no cargo"})
		return nil
	}
	target := filepath.Join(b.Disk, "cargo")
	if err := b.command("cargo", "build", "--release", "--quiet", "--offline", "--manifest-path", filepath.Join(crate, "Cargo.toml"), "--target-dir", target); err != nil {
		b.add(line{what: what, note: "not measured: " + frame.FirstLine(err.Error())})
		return nil
	}
	m, err := b.main()
	if err != nil {
		return err
	}
	file, err := b.model("tiny", tiny)
	if err != nil {
		return err
	}
	if err := m.load(file, "tiny.gguf"); err != nil {
		return err
	}
	defer os.Remove(m.Out("tiny.gguf"))
	out, err := exec.CommandContext(b.ctx, filepath.Join(target, "release/vector_boot"), "pingpong", m.Of("tiny.gguf", ""), "1000").Output()
	if err != nil {
		return fmt.Errorf("pingpong: %w", err)
	}
	return b.pingpong(string(out))
}

// pingpong reads the example's table: which CPUs, way, median and 99th percentile
// in microseconds. The pipes come first in each block.
func (b *bench) pingpong(text string) error {
	rows := strings.Split(strings.TrimSpace(text), "\n")
	var base float64
	var pipes string
	for _, l := range rows[1:] {
		f := strings.Fields(l)
		if len(f) < 4 {
			return fmt.Errorf("pingpong prints %q", l)
		}
		median, err1 := strconv.ParseFloat(f[2], 64)
		p99, err2 := strconv.ParseFloat(f[3], 64)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("pingpong: %w", err)
		}
		show := fmt.Sprintf("%s (p99 %s)", secondsText(median/1e6), secondsText(p99/1e6))
		if f[1] == "pipes" {
			base, pipes = median, show
			continue
		}
		what, goal := "a session file", 1/5.0
		if f[1] == "futex" {
			what, goal = "the control page", 1/1.5
		}
		b.add(line{what: "interrupt to answer, " + cpus[f[0]], ours: "vector_boot pingpong, " + what, oursValue: show,
			theirs: "two pipes", theirsValue: pipes, ratio: base / median, goal: goal})
	}
	return nil
}

// cpus is how the example names where the two processes run.
var cpus = map[string]string{"any": "anywhere", "one": "both on one CPU", "two": "on two CPUs"}
