package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// clientEnv makes the test program one of the clients of the kill tests.
const clientEnv = "VBOOTFS_TEST_CLIENT"

// errand is what a client is told in clientEnv.
type errand struct {
	Kind   string // writer or reader
	Out    string // its directory in output/
	Boot   string // that of its models
	Bodies string
	World  world
	Seed   uint64
}

// client does its errand until the daemon is gone. A writer prints a line for each act done.
func client(text string) int {
	var e errand
	err := json.Unmarshal([]byte(text), &e)
	if err == nil {
		if e.Kind == "reader" {
			err = e.readOn()
		} else {
			err = e.writeOn()
		}
	}
	if !gone(err, e.Out) {
		fmt.Fprintln(os.Stderr, e.Kind, err)
		return 1
	}
	return 0
}

// gone reports whether an error says that the daemon has died. An open that it had
// answered just before fails with EIO, because the kernel has forgotten the segment.
func gone(err error, dir string) bool {
	if errors.Is(err, unix.EIO) {
		err = unix.Statfs(dir, new(unix.Statfs_t))
	}
	return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
}

func (e *errand) writeOn() error {
	b, err := loadBodies(e.Bodies)
	if err != nil {
		return err
	}
	for p := newPlan(e.World, e.Seed); ; {
		a := p.next()
		if err := e.perform(b, p.w, a); err != nil {
			return fmt.Errorf("%+v: %w", a, err)
		}
		p.w.apply(a)
		fmt.Println(a.Kind)
	}
}

func (e *errand) perform(b *bodies, w world, a act) error {
	name := filepath.Join(e.Out, a.A)
	switch a.Kind {
	case "write":
		return os.WriteFile(name, b.bytes(a.Body), 0o644)
	case "part":
		if err := os.WriteFile(name+".part", b.bytes(a.Body), 0o644); err != nil {
			return err
		}
		return os.Rename(name+".part", name)
	case "keep":
		return writeSynced(name, b.bytes(a.Body))
	case "remove":
		return os.Remove(name)
	case "rename":
		return os.Rename(name, filepath.Join(e.Out, a.B))
	case "commit":
		return e.commit(b, a)
	case "evict":
		return os.WriteFile(filepath.Join(e.Boot, a.A, "ctl"), []byte("evict"), 0)
	}
	have, err := os.ReadFile(name)
	if err == nil && !bytes.Equal(have, b.bytes(w[a.A])) {
		err = errors.New("other bytes than those written")
	}
	return err
}

// writeSynced writes a file, syncs it and its directory.
func writeSynced(name string, content []byte) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// commit fills two tensors in one draft. A model that is cold is loaded first.
func (e *errand) commit(b *bodies, a act) error {
	dir := filepath.Join(e.Boot, a.A)
	d := filepath.Join(dir, "drafts/d")
	err := os.WriteFile(filepath.Join(dir, "ctl"), []byte("load"), 0)
	if err == nil {
		err = os.Mkdir(d, 0o755)
	}
	for i, t := range b.tensors[a.Body.Version-1] {
		if err == nil {
			content := bytes.Repeat([]byte{a.Body.Fill}, int(t.Bytes))
			err = os.WriteFile(filepath.Join(d, "tensors", filled[i], "data"), content, 0)
		}
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(d, "ctl"), []byte("commit"), 0)
	}
	if err == nil {
		err = os.Remove(d)
	}
	return err
}

// readOn maps the files that are only replaced, again and again. Whatever it has
// mapped must be whole, also when the daemon is gone.
func (e *errand) readOn() error {
	b, err := loadBodies(e.Bodies)
	if err != nil {
		return err
	}
	var held [][]byte
	for i := 0; ; i++ {
		m, err := mapFile(filepath.Join(e.Out, keepNames[i%len(keepNames)]))
		switch {
		case errors.Is(err, unix.ENOENT):
		case err != nil:
			if torn := e.whole(b, held); torn != nil {
				return torn
			}
			return err
		default:
			held = append(held, m)
		}
		if len(held) > 8 {
			if err := e.whole(b, held); err != nil {
				return err
			}
			for _, m := range held[:4] {
				_ = unix.Munmap(m)
			}
			held = slices.Delete(held, 0, 4)
		}
	}
}

func (e *errand) whole(b *bodies, held [][]byte) error {
	for _, m := range held {
		if _, ok := b.is(m); !ok {
			return fmt.Errorf("a mapping of %d bytes is no version", len(m))
		}
	}
	return nil
}

// mapFile maps a file; ENOENT for an empty one.
func mapFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	if size == 0 {
		return nil, unix.ENOENT
	}
	return unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
}
