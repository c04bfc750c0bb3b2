package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"vbootfs/ggufview"
	"vbootfs/vectorboot"
)

// storeCheck looks at a segment store: that of a mount, or one that a killed
// daemon left. What the next start puts right by itself is no finding there.
type storeCheck struct {
	*checker
	root string
	out  string // output/ of the mount, "" without one
}

// storeDirs are what a store consists of.
var storeDirs = []string{"control", "live", "notes", "stage"}

func (s *storeCheck) all() {
	ents, err := os.ReadDir(s.root)
	if err != nil {
		s.find(s.root, "%v", err)
		return
	}
	for _, e := range ents {
		if !slices.Contains(storeDirs, e.Name()) {
			s.find(filepath.Join(s.root, e.Name()), "does not belong here")
		}
	}
	live, err := namesBelow(filepath.Join(s.root, "live"))
	if err != nil {
		s.find(s.root, "%v", err)
		return
	}
	if s.out != "" {
		s.shown(live)
	}
	s.pages(live)
	s.staged(live)
}

// shown checks that the mount shows what the store has, inode by inode.
func (s *storeCheck) shown(live map[string]iofs.FileInfo) {
	out, err := namesBelow(s.out)
	if err != nil {
		s.find(s.out, "%v", err)
		return
	}
	for p, info := range live {
		if other := out[p]; other == nil || info.Mode().IsRegular() && inode(info) != inode(other) {
			s.find(filepath.Join(s.root, "live", p), "a segment that output/ does not show")
		}
	}
	for p := range out {
		if live[p] == nil {
			s.find(filepath.Join(s.out, p), "not in the store")
		}
	}
}

func inode(info iofs.FileInfo) uint64 { return info.Sys().(*syscall.Stat_t).Ino }

// pages checks that each control page belongs to a model.
func (s *storeCheck) pages(live map[string]iofs.FileInfo) {
	owners := map[string]bool{}
	for p := range live {
		if vectorboot.Loadable(p) {
			sum := sha256.Sum256([]byte(p))
			owners[hex.EncodeToString(sum[:])] = true
		}
	}
	dir := filepath.Join(s.root, "control")
	ents, err := os.ReadDir(dir)
	if err != nil {
		s.find(dir, "%v", err)
	}
	for _, e := range ents {
		name := filepath.Join(dir, e.Name())
		if !owners[e.Name()] && s.out != "" {
			s.find(name, "the control page of no model")
		}
		if b, err := os.ReadFile(name); err != nil || len(b) != 4096 || string(b[:8]) != "VBOOTCTL" {
			s.find(name, "not a control page: %v", err)
		}
	}
}

// staged checks that what is in stage/ is in use, or complete.
func (s *storeCheck) staged(live map[string]iofs.FileInfo) {
	dir := filepath.Join(s.root, "stage")
	ents, err := os.ReadDir(dir)
	if err != nil || len(ents) == 0 {
		if err != nil {
			s.find(dir, "%v", err)
		}
		return
	}
	held, err := heldBy(s.root + ".lock")
	if err != nil && s.out != "" {
		s.note(dir, "not checked: %v", err)
		return
	}
	for _, e := range ents {
		name := filepath.Join(dir, e.Name())
		info, err := e.Info()
		switch journal := strings.HasPrefix(e.Name(), "journal-"); {
		case errors.Is(err, iofs.ErrNotExist): // its writer has ended
		case err != nil:
			s.find(name, "%v", err)
		case strings.HasPrefix(e.Name(), "damaged-"):
			s.find(name, "a damaged journal that was put aside")
		case s.out == "" && journal:
			s.journal(name, live)
		case s.out != "" && journal:
			s.find(name, "the journal of a commit that did not end")
		case s.out != "" && !held[idOf(info)]:
			s.find(name, "left behind: the daemon does not have it open")
		}
	}
}

// journal checks that a commit can be completed.
func (s *storeCheck) journal(name string, live map[string]iofs.FileInfo) {
	text, err := os.ReadFile(name)
	if err == nil {
		err = vectorboot.CheckJournal(filepath.Base(name), text, func(ino uint64) *ggufview.File {
			return headerOf(filepath.Join(s.root, "live"), live, ino)
		}, func(file string) int64 {
			info, err := os.Lstat(filepath.Join(filepath.Dir(name), file))
			if err != nil || !info.Mode().IsRegular() {
				return -1
			}
			return info.Size()
		})
	}
	if err != nil {
		s.find(name, "%v", err)
	}
}

// headerOf reads the header of the file with an inode number, nil if there is none.
func headerOf(dir string, live map[string]iofs.FileInfo, ino uint64) *ggufview.File {
	for p, info := range live {
		if !info.Mode().IsRegular() || idOf(info).ino != ino {
			continue
		}
		f, err := os.Open(filepath.Join(dir, p))
		if err != nil {
			return nil
		}
		defer f.Close()
		if h, err := ggufview.Open(f, info.Size()); err == nil {
			return h
		}
	}
	return nil
}

// fileID tells files apart.
type fileID struct{ dev, ino uint64 }

func idOf(info iofs.FileInfo) fileID {
	st := info.Sys().(*syscall.Stat_t)
	return fileID{st.Dev, st.Ino}
}

// heldBy lists the files that the process which holds a lock file has open.
func heldBy(lock string) (map[fileID]bool, error) {
	pid, err := holder(lock)
	if err != nil {
		return nil, err
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	ents, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	held := map[fileID]bool{}
	for _, e := range ents {
		if info, err := os.Stat(filepath.Join(dir, e.Name())); err == nil {
			held[idOf(info)] = true
		}
	}
	return held, nil
}

// holder finds who holds an flock, in /proc/locks:
//
//	1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF
func holder(lock string) (pid int, err error) {
	info, err := os.Stat(lock)
	if err != nil {
		return 0, err
	}
	b, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 5 && f[1] == "FLOCK" && strings.HasSuffix(f[5], ":"+strconv.FormatUint(inode(info), 10)) {
			return strconv.Atoi(f[4])
		}
	}
	return 0, fmt.Errorf("%s: nobody holds it", lock)
}
