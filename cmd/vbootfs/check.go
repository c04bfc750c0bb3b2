package main

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vbootfs/ggufview"
)

// checkCommand verifies what must always hold. Exit codes: 0 nothing found, 1
// findings, 2 it could not look.
func checkCommand() *cobra.Command {
	c := &checker{pause: time.Second}
	cmd := &cobra.Command{
		Use:   "check [--full] PATH...",
		Short: "verify a mount, a SOURCE directory or a segment store, and change nothing",
		Long: `check looks at mountpoints, SOURCE directories (while nothing mounts them) and segment
stores (such as /run/vbootfs/dir-...), and prints a line for each thing that is not as
it must be. Files of at most 64 MiB are compared whole, of larger ones samples, unless
--full is given. What is in use may change meanwhile: there, only what is found twice counts.
Models that are cold stay cold. Exit codes: 0 nothing found, 1 findings, 2 could not look.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return failure{exitSystem, errors.New("check: want a mountpoint, a SOURCE or a segment store")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.run(args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return failure{exitSystem, err} })
	cmd.Flags().BoolVar(&c.full, "full", false, "compare every byte, and the hashes of all models")
	return cmd
}

// finding is one thing that is wrong. Two looks find the same one when path and
// kind agree; figures may differ.
type finding struct{ path, kind, text string }

// checker collects findings.
type checker struct {
	full  bool
	pause time.Duration // between two looks
	found []finding
	notes []string // what was not looked at, and why
}

// find adds a finding. What only lacks permission is a note.
func (c *checker) find(path, format string, args ...any) {
	for _, a := range args {
		if err, ok := a.(error); ok && errors.Is(err, iofs.ErrPermission) {
			c.note(path, "not checked: %v", err)
			return
		}
	}
	c.found = append(c.found, finding{path, format, fmt.Sprintf(format, args...)})
}

func (c *checker) note(path, format string, args ...any) {
	if text := path + ": " + fmt.Sprintf(format, args...); !slices.Contains(c.notes, text) {
		c.notes = append(c.notes, text)
	}
}

func (c *checker) run(paths []string, stdout, stderr io.Writer) error {
	var all []finding
	for _, p := range paths {
		look, err := c.kind(p)
		if err != nil {
			return failure{exitSystem, fmt.Errorf("check: %w", err)}
		}
		all = append(all, c.twice(look)...)
	}
	for _, n := range c.notes {
		fmt.Fprintln(stderr, "vbootfs: note:", n)
	}
	for _, f := range all {
		fmt.Fprintf(stdout, "%s: %s\n", printable(f.path), f.text)
	}
	if len(all) > 0 {
		return failure{exitUsage, fmt.Errorf("check: %d found", len(all))}
	}
	return nil
}

// printable keeps a path with odd bytes on one line.
func printable(p string) string {
	if q := fmt.Sprintf("%q", p); q != `"`+p+`"` {
		return q
	}
	return p
}

// kind finds out what a path is, and how to look at it.
func (c *checker) kind(p string) (look func(), err error) {
	if _, err := os.ReadDir(p); err != nil {
		return nil, err
	}
	has := func(name string) bool { _, err := os.Lstat(filepath.Join(p, name)); return err == nil }
	switch {
	case has("vector_boot/status"):
		return func() { c.mounted(p) }, nil
	case has("live") && has("stage") && has("control"):
		return func() { (&storeCheck{checker: c, root: p}).all() }, nil
	}
	return func() { c.source(p) }, nil
}

// twice looks, and when there is something, looks again a moment later: a change
// in progress is no finding.
func (c *checker) twice(look func()) []finding {
	c.found = nil
	look()
	first := c.found
	if len(first) == 0 {
		return nil
	}
	time.Sleep(c.pause)
	c.found = nil
	look()
	again := c.found
	return slices.DeleteFunc(first, func(f finding) bool {
		return !slices.ContainsFunc(again, func(g finding) bool { return f.path == g.path && f.kind == g.kind })
	})
}

// source looks at a SOURCE that is not mounted.
func (c *checker) source(dir string) {
	c.leftovers(dir)
	err := filepath.WalkDir(dir, func(p string, d iofs.DirEntry, err error) error {
		switch {
		case err != nil:
			c.find(p, "%v", err)
		case d.IsDir() && p == filepath.Join(dir, workDir):
			return iofs.SkipDir
		case loadable(p, d):
			c.valid(p)
		}
		return nil
	})
	if err != nil {
		c.find(dir, "%v", err)
	}
}

// valid checks that a file is a whole GGUF. An empty one means nothing.
func (c *checker) valid(p string) {
	f, err := os.Open(p)
	if err != nil {
		c.find(p, "%v", err)
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err == nil && st.Size() > 0 {
		_, err = ggufview.Open(f, st.Size())
	}
	if err != nil {
		c.find(p, "not a valid GGUF: %v", err)
	}
}

// workDir holds files of SOURCE that are not whole yet.
const workDir = ".vbootfs"

// leftovers are files of SOURCE that somebody began to write and did not finish.
func (c *checker) leftovers(source string) {
	dir := filepath.Join(source, workDir)
	ents, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, iofs.ErrNotExist) {
		c.find(dir, "%v", err)
	}
	for _, e := range ents {
		c.find(filepath.Join(dir, e.Name()), "left by a write to SOURCE that did not end")
	}
}

// Sampling: files up to wholeUpTo bytes are compared whole, of larger ones
// samples pieces of piece bytes at equal distances.
const (
	wholeUpTo = 64 << 20
	piece     = 1 << 20
	samples   = 32
)

// differ returns the offset of a piece in which two files of a size differ, -1
// if none does.
func (c *checker) differ(a, b io.ReaderAt, size int64) (int64, error) {
	x, y := make([]byte, piece), make([]byte, piece)
	for _, off := range c.offsets(size) {
		n := min(piece, size-off)
		_, err := a.ReadAt(x[:n], off)
		_, err2 := b.ReadAt(y[:n], off)
		if err := errors.Join(noEOF(err), noEOF(err2)); err != nil {
			return off, err
		}
		if string(x[:n]) != string(y[:n]) {
			return off, nil
		}
	}
	return -1, nil
}

// offsets are where the pieces to compare begin.
func (c *checker) offsets(size int64) (list []int64) {
	if size <= wholeUpTo || c.full {
		for off := int64(0); off < size; off += piece {
			list = append(list, off)
		}
		return list
	}
	for i := range int64(samples - 1) {
		list = append(list, (size-piece)/(samples-1)*i)
	}
	return append(list, size-piece)
}

// noEOF drops the end of the file: sizes are compared elsewhere.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// lines reads a file of "KEY VALUE" lines.
func lines(name string) (map[string]string, error) {
	b, err := os.ReadFile(name)
	m := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		m[k] = v
	}
	return m, err
}
