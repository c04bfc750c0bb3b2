package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"

	"vbootfs/scripts/frame"
)

// site is a kind of file system.
type site struct {
	name  string
	mount func(r *run, dir string, use func(string) error) error
}

// The first two are the peers.
var sites = []site{
	{"tmpfs", func(r *run, dir string, use func(string) error) error { return tmpfs(dir, use) }},
	{"loopback", loopback},
	{"passthrough", vbootfs(false)},
	{"daemon", vbootfs(false, "no_passthrough")},
	{"passthrough, SOURCE", vbootfs(true)},
	{"daemon, SOURCE", vbootfs(true, "no_passthrough")},
}

// with mounts, calls use with an empty directory, and unmounts.
func (s *site) with(r *run, use func(dir string) error) error {
	base := filepath.Join(r.dirs.Disk, "site")
	if err := os.Mkdir(base, 0o755); err != nil {
		return err
	}
	err := s.mount(r, base, func(root string) error {
		dir := filepath.Join(root, "suite")
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		return errors.Join(use(dir), os.RemoveAll(dir))
	})
	return errors.Join(err, os.RemoveAll(base))
}

func tmpfs(dir string, use func(string) error) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4G"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	return errors.Join(use(dir), unix.Unmount(dir, 0))
}

// loopback is the example of go-fuse over a tmpfs.
func loopback(r *run, base string, use func(string) error) error {
	lower, dir := filepath.Join(base, "lower"), filepath.Join(base, "loop")
	if err := errors.Join(os.Mkdir(lower, 0o755), os.Mkdir(dir, 0o755)); err != nil {
		return err
	}
	return tmpfs(lower, func(lower string) error {
		cmd := exec.Command(filepath.Join(r.programs, "loopback"), "-allow-other", dir, lower)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			return err
		}
		if _, err := out.Read(make([]byte, 1)); err != nil { // it says "Mounted!"
			return errors.Join(err, cmd.Wait())
		}
		err = errors.Join(use(dir), unix.Unmount(dir, 0))
		if err != nil {
			err = errors.Join(err, cmd.Process.Kill(), unix.Unmount(dir, unix.MNT_DETACH))
			_ = cmd.Wait() // killed
			return err
		}
		return cmd.Wait()
	})
}

// complaints are lines of the daemon's log that nobody wants to see.
var complaints = regexp.MustCompile(`(?m)^.*(level=(error|fatal|panic)|panic:|DATA RACE).*$`)

// vbootfs is the output directory of a mount.
func vbootfs(durable bool, opts ...string) func(*run, string, func(string) error) error {
	return func(r *run, base string, use func(string) error) error {
		m := frame.Mount{Binary: filepath.Join(r.programs, "vbootfs"), Source: "none", Dir: filepath.Join(base, "mnt")}
		log := filepath.Join(base, "log")
		segments := filepath.Join(r.dirs.Shm, "segments")
		m.Opts = append([]string{"allow_other", "size=4G", "segdir=" + segments, "log=" + log}, opts...)
		if err := os.Mkdir(m.Dir, 0o755); err != nil {
			return err
		}
		if durable {
			m.Source = filepath.Join(base, "source")
			if err := os.Mkdir(m.Source, 0o755); err != nil {
				return err
			}
		}
		if err := m.Start(r.ctx); err != nil {
			return err
		}
		err := errors.Join(use(m.Out("")), m.Stop())
		text, _ := os.ReadFile(log) // none without complaints
		if found := complaints.Find(bytes.TrimSpace(text)); found != nil {
			err = errors.Join(err, fmt.Errorf("the daemon says: %s", found))
		}
		if left, _ := os.ReadDir(segments); len(left) > 0 {
			err = errors.Join(err, fmt.Errorf("left in the segment directory: %v", left))
		}
		return err
	}
}
