package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// inject makes system calls of the daemon fail: specs are those of strace's
// -e inject. It returns when every thread is traced, and the function that it
// returns ends that.
func (m *mount) inject(specs ...string) (stop func()) {
	m.t.Helper()
	args := []string{"-f", "-q", "-o", "/dev/null", "-p", fmt.Sprint(m.pid)}
	var calls []string
	for _, s := range specs {
		call, _, _ := strings.Cut(s, ":")
		calls = append(calls, call)
		args = append(args, "-e", "inject="+s)
	}
	cmd := exec.Command("strace", append(args, "-e", "trace="+strings.Join(calls, ","))...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.until("strace traces every thread", func() bool { return m.traced() == cmd.Process.Pid })
	return func() {
		m.t.Helper()
		_ = cmd.Process.Signal(unix.SIGINT) // it lets go; it may have ended with the daemon
		defer time.AfterFunc(patience, func() { _ = cmd.Process.Kill() }).Stop()
		if err := cmd.Wait(); err != nil && m.traced() == cmd.Process.Pid {
			m.t.Errorf("strace: %v: %s", err, &stderr)
		}
	}
}

// traced is the process that traces every thread of the daemon, 0 if none does.
func (m *mount) traced() (tracer int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", m.pid)) // the pattern is right
	for _, name := range tasks {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		_, after, _ := strings.Cut(string(b), "TracerPid:")
		if _, err := fmt.Sscan(after, &tracer); err != nil || tracer == 0 {
			return 0
		}
	}
	return tracer
}

// until waits for something that must come.
func (m *mount) until(what string, come func() bool) {
	m.t.Helper()
	for end := time.Now().Add(patience); !come(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("it does not come to pass that %s", what)
		}
	}
}
