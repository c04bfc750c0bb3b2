package main

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// read reads the whole file, or pieces of it. Through the daemon, the first
// reader and the next ones are two things: the kernel keeps the pages.
func (b *bench) read(mounted func() (*mount, error)) error {
	m, err := mounted()
	if err != nil {
		return err
	}
	ours, theirs, size, err := b.twin(m)
	if err != nil {
		return err
	}
	through := m.pass() == "off"
	goal := func(huge float64) float64 {
		if through {
			return 1
		}
		return huge
	}
	type how struct {
		name string
		goal float64
		call func(*os.File) ([]float64, error)
		size int64
	}
	rows := []how{
		{"read 1M", goal(2), loop(1 << 20), size},
		{"read 128K", goal(2), loop(128 << 10), size},
		{"read 4K", 1, loop(4 << 10), size},
		{"pread 4K random", 1, randomReads(size), 0},
		{"sendfile", 1, sendfile, size},
	}
	if through {
		rows = append(rows, how{"read 1M again", 1, loop(1 << 20), size})
	}
	for _, r := range rows {
		first := through && r.name != "read 1M again"
		err := b.compare(pair{name: r.name + b.suffix(), bytes: r.size, goal: r.goal,
			ours:   side{"model.gguf", opened(ours, first, r.call)},
			theirs: side{"the file in /dev/shm", opened(theirs, false, r.call)}})
		if err != nil {
			return err
		}
	}
	return nil
}

// opened opens a file and measures with it; with first, the kernel has cached nothing of it.
func opened(name string, first bool, f func(*os.File) ([]float64, error)) func() ([]float64, error) {
	return func() ([]float64, error) {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		if first {
			if err := forget(file); err != nil {
				return nil, err
			}
		}
		return f(file)
	}
}

// loop reads from the first byte to the last, n bytes a call.
func loop(n int) func(*os.File) ([]float64, error) {
	buf := make([]byte, n)
	return func(f *os.File) ([]float64, error) {
		begin := time.Now()
		for {
			k, err := unix.Read(int(f.Fd()), buf)
			if err == unix.EINTR {
				continue
			}
			if k == 0 || err != nil {
				return []float64{time.Since(begin).Seconds()}, err
			}
		}
	}
}

// randomReads gives the time of one read.
func randomReads(size int64) func(*os.File) ([]float64, error) {
	const count = 20000
	buf := make([]byte, 4096)
	return func(f *os.File) ([]float64, error) {
		r := rand.New(rand.NewPCG(1, 2))
		fd := int(f.Fd())
		begin := time.Now()
		for range count {
			if _, err := unix.Pread(fd, buf, r.Int64N(size/4096)*4096); err != nil {
				return nil, err
			}
		}
		return []float64{time.Since(begin).Seconds() / count}, nil
	}
}

// sendfile sends the file to a TCP connection of this machine whose other end throws it away.
func sendfile(f *os.File) ([]float64, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() { done <- swallow(l) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	_, err = io.Copy(c, f)
	err = errors.Join(err, c.Close(), <-done)
	return []float64{time.Since(begin).Seconds()}, err
}

func swallow(l net.Listener) error {
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var no error
	buf := make([]byte, 1<<20) // only its length counts: nothing is copied
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, _, e := unix.Recvfrom(int(fd), buf, unix.MSG_TRUNC)
			if e == unix.EAGAIN {
				return false
			}
			if no = e; n <= 0 || e != nil {
				return true
			}
		}
	})
	return errors.Join(err, no)
}
