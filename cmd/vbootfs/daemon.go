package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// childEnv tells the child that it is one, and on which descriptor to report.
const childEnv = "VBOOTFS_READY_FD"

// spawn runs this program again in a session of its own and returns when that
// one has mounted, or with what it said and its exit code. A Go program cannot
// fork, so the child starts over.
func spawn() error {
	r, w, err := os.Pipe()
	if err != nil {
		return failure{exitSystem, err}
	}
	defer r.Close()
	self, err := os.Executable()
	if err != nil {
		return failure{exitSystem, err}
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), childEnv+"=3")
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var stderr strings.Builder
	errPipe, err := cmd.StderrPipe()
	if err != nil {
		return failure{exitSystem, err}
	}
	if err := cmd.Start(); err != nil {
		return failure{exitSystem, err}
	}
	w.Close()
	if said, err := io.ReadAll(r); err == nil && string(said) == "ok" {
		return nil
	}
	_, _ = io.Copy(&stderr, errPipe)
	err = cmd.Wait()
	text := strings.TrimPrefix(strings.TrimSpace(stderr.String()), "vbootfs: ")
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return failure{exit.ExitCode(), errors.New(text)}
	}
	return failure{exitSystem, fmt.Errorf("the daemon ended early: %v: %s", err, text)}
}

// ready tells the parent, if there is one, that the mount answers, and lets go
// of its terminal and directory.
func ready() error {
	fd, err := strconv.Atoi(os.Getenv(childEnv))
	if err != nil {
		return nil // in the foreground
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for std := range 3 {
		if err := syscall.Dup3(int(null.Fd()), std, 0); err != nil {
			return err
		}
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	w := os.NewFile(uintptr(fd), "ready")
	defer w.Close()
	_, err = w.WriteString("ok")
	return err
}
