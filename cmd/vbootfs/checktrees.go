package main

import (
	"errors"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// treeCheck compares output/ with SOURCE while nothing is pending.
type treeCheck struct {
	*checker
	out, source string
	store       string // root of the segment store if known: it tells which files are cold
}

func (t *treeCheck) all() {
	t.leftovers(t.source)
	here, err := namesBelow(t.out)
	there, err2 := namesBelow(t.source)
	if err := errors.Join(err, err2); err != nil {
		t.find(t.out, "%v", err)
		return
	}
	for p, info := range here {
		switch other := there[p]; {
		case info.Mode()&iofs.ModeDevice != 0: // stays in memory
		case other == nil && t.beingWritten(p): // it goes to SOURCE when it is closed
		case other == nil:
			t.find(filepath.Join(t.out, p), "not in SOURCE")
		default:
			t.pair(p, info, other)
		}
	}
	for p, info := range there {
		if here[p] == nil && info.Mode()&iofs.ModeDevice == 0 {
			t.find(filepath.Join(t.source, p), "in SOURCE only")
		}
	}
	t.links(here, there)
}

// namesBelow lists what is below a directory, without workDir.
func namesBelow(dir string) (map[string]iofs.FileInfo, error) {
	all := map[string]iofs.FileInfo{}
	err := filepath.WalkDir(dir, func(p string, d iofs.DirEntry, err error) error {
		if errors.Is(err, iofs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil || p == dir {
			return err
		}
		if p == filepath.Join(dir, workDir) {
			return iofs.SkipDir
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if info, err := d.Info(); err == nil {
			all[rel] = info
		}
		return nil
	})
	return all, err
}

// pair compares one name. Times of directories and links are not kept.
func (t *treeCheck) pair(p string, a, b iofs.FileInfo) {
	name := filepath.Join(t.out, p)
	x, y := a.Sys().(*syscall.Stat_t), b.Sys().(*syscall.Stat_t)
	if a.Mode().Type() != b.Mode().Type() {
		t.find(name, "%v, and %v in SOURCE", a.Mode(), b.Mode())
		return
	}
	if x.Uid != y.Uid || x.Gid != y.Gid {
		t.find(name, "owned by %d:%d, in SOURCE by %d:%d", x.Uid, x.Gid, y.Uid, y.Gid)
	}
	if a.Mode().Type() == iofs.ModeSymlink {
		t.target(p)
		return
	}
	if a.Mode() != b.Mode() {
		t.find(name, "mode %v, in SOURCE %v", a.Mode(), b.Mode())
	}
	if !a.Mode().IsRegular() {
		return
	}
	if (a.Size() != b.Size() || !a.ModTime().Equal(b.ModTime())) && t.beingWritten(p) {
		return
	}
	if a.Size() != b.Size() {
		t.find(name, "%d bytes, in SOURCE %d", a.Size(), b.Size())
		return
	}
	if !a.ModTime().Equal(b.ModTime()) {
		t.find(name, "changed at %v, in SOURCE at %v", a.ModTime(), b.ModTime())
	}
	if !t.cold(p, x) {
		t.content(p, a.Size())
	}
}

func (t *treeCheck) target(p string) {
	a, err := os.Readlink(filepath.Join(t.out, p))
	b, err2 := os.Readlink(filepath.Join(t.source, p))
	if err := errors.Join(err, err2); err != nil || a != b {
		t.find(filepath.Join(t.out, p), "leads to %q, in SOURCE to %q: %v", a, b, err)
	}
}

// cold reports whether the bytes of a file are in SOURCE only: reading it would
// bring them here.
func (t *treeCheck) cold(p string, st *syscall.Stat_t) bool {
	if t.store == "" {
		return st.Blocks == 0
	}
	return isCold(filepath.Join(t.store, "live", p))
}

// isCold looks for the mark, which has two names: with privilege, and without.
func isCold(name string) bool {
	for _, mark := range []string{"trusted.vbootfs.cold", "user.vbootfs-mark.cold"} {
		if _, err := unix.Lgetxattr(name, mark, nil); err == nil {
			return true
		}
	}
	return false
}

func (t *treeCheck) content(p string, size int64) {
	name := filepath.Join(t.out, p)
	a, err := os.Open(name)
	if err != nil {
		t.find(name, "%v", err)
		return
	}
	defer a.Close()
	b, err := os.Open(filepath.Join(t.source, p))
	if err != nil {
		t.find(name, "in SOURCE: %v", err)
		return
	}
	defer b.Close()
	if off, err := t.differ(a, b, size); off >= 0 {
		t.find(name, "not the bytes of SOURCE at %d: %v", off, err)
	}
}

// beingWritten reports whether a process has the file open for writing. It looks
// at names only: another mount that hangs must not hang this.
func (t *treeCheck) beingWritten(p string) bool {
	name, err := filepath.Abs(filepath.Join(t.out, p))
	if err != nil {
		return false
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is right
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		// The kernel may have looked the name up again since the file was opened.
		if err != nil || strings.TrimSuffix(target, " (deleted)") != name {
			continue
		}
		text, err := os.ReadFile(strings.Replace(fd, "/fd/", "/fdinfo/", 1))
		_, after, ok := strings.Cut(string(text), "flags:\t")
		octal, _, _ := strings.Cut(after, "\n")
		flags, err2 := strconv.ParseUint(octal, 8, 64)
		if err == nil && err2 == nil && ok && flags&unix.O_ACCMODE != unix.O_RDONLY {
			return true
		}
	}
	return false
}

// links compares which names are one file.
func (t *treeCheck) links(here, there map[string]iofs.FileInfo) {
	a, b := groups(here), groups(there)
	for p, names := range a {
		if there[p] != nil && b[p] != names {
			t.find(filepath.Join(t.out, p), "is one file with %s, in SOURCE with %s", names, b[p])
		}
	}
}

// groups maps each file to all names that it has in the tree.
func groups(all map[string]iofs.FileInfo) map[string]string {
	names := map[uint64][]string{}
	for p, info := range all {
		if info.Mode().IsRegular() {
			ino := info.Sys().(*syscall.Stat_t).Ino
			names[ino] = append(names[ino], p)
		}
	}
	out := map[string]string{}
	for _, list := range names {
		slices.Sort(list)
		for _, p := range list {
			out[p] = strings.Join(list, " ")
		}
	}
	return out
}
