package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// number is something that must not grow by more than a quarter and the slack.
type number struct {
	what     string
	n, slack int
}

// measure lets the daemon come to rest and counts what it holds.
func (s *soak) measure() []number {
	s.world.Lock()
	defer s.world.Unlock()
	if s.over() {
		return nil
	}
	if err := s.settle(); err != nil {
		s.fail("ctl sync", err)
	}
	if err := s.verifyAll(); err != nil {
		s.fail("measurement", err)
	}
	pid := s.m.PID()
	names := 0
	for _, n := range s.names {
		if n.want != "" {
			names++
		}
	}
	// Files that are there count against those which have to be.
	return []number{
		{"descriptors", entries(fmt.Sprintf("/proc/%d/fd", pid)), 20},
		{"threads", entries(fmt.Sprintf("/proc/%d/task", pid)), 8},
		{"memory KiB", int(s.m.RSS() >> 10), 16 << 10},
		{"extra files", s.files() - names, 0},
	}
}

// settle returns when SOURCE has everything.
func (s *soak) settle() error { return os.WriteFile(s.m.Boot("ctl"), []byte("sync\n"), 0) }

func entries(dir string) int {
	list, _ := os.ReadDir(dir) // the daemon is gone: 0
	return len(list)
}

// files counts what the segment store holds, control pages apart.
func (s *soak) files() (n int) {
	_ = filepath.WalkDir(s.segments(), func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == "control" {
			return fs.SkipDir
		}
		if err == nil && d.Type().IsRegular() {
			n++
		}
		return nil
	})
	return n
}

var complaint = regexp.MustCompile(`(?m)^.*(level=(error|fatal|panic)|panic:|DATA RACE).*$`)

// complaints is an error when the daemon logged what nobody wants to see.
func (s *soak) complaints() error {
	text, err := os.ReadFile(s.log())
	if found := complaint.Find(text); found != nil {
		return fmt.Errorf("the daemon says: %s", found)
	}
	if os.IsNotExist(err) {
		return nil
	}
	return err
}
