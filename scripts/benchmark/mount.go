package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vbootfs/scripts/frame"
)

// mount is a mounted vbootfs.
type mount struct{ frame.Mount }

// main is a mount without SOURCE that groups share; daemon the same without passthrough.
func (b *bench) main() (*mount, error)   { return b.share() }
func (b *bench) daemon() (*mount, error) { return b.share("no_passthrough") }

func (b *bench) share(opts ...string) (*mount, error) {
	key := strings.Join(opts, ",")
	if m := b.shared[key]; m != nil {
		return m, nil
	}
	m, err := b.newMount("none", opts...)
	if err == nil {
		b.shared[key] = m
	}
	return m, err
}

func (b *bench) newMount(source string, opts ...string) (*mount, error) {
	b.serial++
	m := &mount{frame.Mount{Binary: b.binary, Source: source, Dir: filepath.Join(b.Disk, fmt.Sprintf("mnt%d", b.serial))}}
	limit := 3*b.size + 1<<30
	m.Opts = append([]string{"segdir=" + filepath.Join(b.Shm, "segments"), "size=" + strconv.FormatInt(limit, 10)}, opts...)
	if err := os.Mkdir(m.Dir, 0o755); err != nil {
		return nil, err
	}
	return m, m.Start(b.ctx)
}

// load puts a file in unless it is there already.
func (m *mount) load(file, name string) error {
	if _, err := os.Stat(m.Out(name)); err == nil {
		return nil
	}
	return copyFile(file, m.Out(name))
}

// command runs a program that has to work.
func (b *bench) command(name string, args ...string) error {
	return frame.Command(b.ctx, name, args...)
}

// shell is a line for sh, with files as $1, $2 ...
func (b *bench) shell(line string, files ...string) func() error {
	return func() error { return b.command("sh", append([]string{"-c", line, "sh"}, files...)...) }
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 1<<20))
	return errors.Join(err, dst.Close())
}

// forget drops what the kernel has cached of a file.
func forget(f *os.File) error { return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }

// pass says whether the mount uses passthrough: "on" or "off".
func (m *mount) pass() string {
	text, _ := os.ReadFile(m.Boot("status"))
	for l := range strings.Lines(string(text)) {
		if f := strings.Fields(l); len(f) == 2 && f[0] == "passthrough" {
			return f[1]
		}
	}
	return "unknown"
}
