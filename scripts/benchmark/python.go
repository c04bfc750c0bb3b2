package main

import (
	"bufio"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
)

//go:embed peers.py
var peersPy string

//go:embed llama.py
var llamaPy string

// python is an interpreter that does what it is told and says how long it took,
// its own start not included.
type python struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// ask lets Python do something once; it returns the seconds.
func (b *bench) ask(op string, args ...any) ([]float64, error) {
	if b.py == nil {
		if err := b.startPython(); err != nil {
			return nil, err
		}
	}
	line, err := json.Marshal(append([]any{op}, args...))
	if err != nil {
		return nil, err
	}
	if _, err := b.py.in.Write(append(line, '\n')); err != nil {
		return nil, err
	}
	answer, err := b.py.out.ReadBytes('\n')
	if err != nil {
		b.py.close()
		b.py = nil
		return nil, fmt.Errorf("%s: Python ended: %w", op, err)
	}
	var r struct {
		Seconds float64
		Error   string
	}
	if err := json.Unmarshal(answer, &r); err != nil {
		return nil, err
	}
	if r.Error != "" {
		return nil, fmt.Errorf("%s: %s", op, r.Error)
	}
	return []float64{r.Seconds}, nil
}

func (b *bench) startPython() error {
	cmd := exec.CommandContext(b.ctx, b.python, "-c", peersPy)
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		return err
	}
	b.py = &python{cmd, in, bufio.NewReader(out)}
	return nil
}

func (p *python) close() {
	p.in.Close()
	_ = p.cmd.Wait() // it has said what it had to say
}
