package main

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"strings"
)

// child is a process of this program that says a line when it is ready.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startChild(cmd *exec.Cmd) (*child, error) {
	c := &child{cmd: cmd}
	var err error
	if c.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if line, err := c.line(); err != nil || line != "ready" {
		c.end()
		return nil, fmt.Errorf("%v: %q, %w", cmd.Args, line, err)
	}
	return c, nil
}

func (c *child) line() (string, error) {
	s, err := c.out.ReadString('\n')
	return strings.TrimSpace(s), err
}

func (c *child) tell(s string) error {
	_, err := io.WriteString(c.in, s+"\n")
	return err
}

// end lets a child that reads its input end.
func (c *child) end() {
	c.in.Close()
	_ = c.cmd.Wait() // its answers were read
}
