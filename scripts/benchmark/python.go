package main

import (
	"bufio"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"vbootfs/scripts/frame"
)

//go:embed peers.py
var peersPy string

//go:embed llama.py
var llamaPy string

// worker is a process that does what each line says and answers with how long it
// took, its own start not included.
type worker struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startWorker(cmd *exec.Cmd) (*worker, error) {
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		return nil, err
	}
	return &worker{cmd, in, bufio.NewReader(out)}, nil
}

func (w *worker) close() {
	w.in.Close()
	_ = w.cmd.Wait() // it has said what it had to say
}

// ask returns the seconds.
func (w *worker) ask(args ...any) ([]float64, error) {
	line, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	if _, err := w.in.Write(append(line, '\n')); err != nil {
		return nil, err
	}
	answer, err := w.out.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("%s ended: %w", filepath.Base(w.cmd.Path), err)
	}
	var r struct {
		Seconds float64
		Error   string
	}
	if err := json.Unmarshal(answer, &r); err != nil {
		return nil, err
	}
	if r.Error != "" {
		return nil, errors.New(r.Error)
	}
	return []float64{r.Seconds}, nil
}

// ask lets Python do something once.
func (b *bench) ask(op string, args ...any) ([]float64, error) {
	if b.py == nil {
		cmd := exec.CommandContext(b.ctx, b.python, "-c", peersPy)
		cmd.Env = plainEnv()
		var err error
		if b.py, err = startWorker(cmd); err != nil {
			return nil, err
		}
	}
	seconds, err := b.py.ask(append([]any{op}, args...)...)
	if errors.Is(err, io.EOF) {
		b.py.close()
		b.py = nil
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", op, err)
	}
	return seconds, err
}

// askPeer lets gguf-parser-go read headers. It is built when it is first needed.
func (b *bench) askPeer(paths ...string) ([]float64, error) {
	if b.peer == nil {
		bin := filepath.Join(b.Disk, "peer")
		if err := frame.Command(b.ctx, "go", "build", "-C", "scripts/benchmark/peer", "-o", bin, "."); err != nil {
			return nil, err
		}
		var err error
		if b.peer, err = startWorker(exec.CommandContext(b.ctx, bin)); err != nil {
			return nil, err
		}
	}
	return b.peer.ask(anys(paths)...)
}

// plainEnv is the environment without settings that make NumPy's kernels slow.
func plainEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "OPENBLAS_CORETYPE=") || strings.HasPrefix(kv, "OPENBLAS_L2_SIZE=")
	})
}

func anys(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}
