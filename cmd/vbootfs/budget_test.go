package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// number reads a value of status.
func (m *mount) number(key string) int {
	m.t.Helper()
	for _, line := range strings.Split(string(read(m.t, m.boot("status"))), "\n") {
		if name, value, _ := strings.Cut(line, " "); name == key {
			n, err := strconv.Atoi(value)
			if err != nil {
				m.t.Fatal(err)
			}
			return n
		}
	}
	m.t.Fatalf("status has no %s", key)
	return 0
}

// TestSmallFilesBesideALargeWrite loads small models and writes small files while a
// large model is being written, for which the store prefers pages of 2 MiB.
func TestSmallFilesBesideALargeWrite(t *testing.T) {
	const files = 10
	a := makeModel(t, "100K", 1)
	m := newMount(t, "none", "size=256M")
	large, err := os.Create(m.out("large.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer large.Close()
	if _, err := large.Write([]byte("G")); err != nil {
		t.Fatal(err)
	}
	before := m.number("resident_bytes")
	for i := range files {
		m.put(a, fmt.Sprintf("%d.gguf", i))
		write(t, m.out(fmt.Sprintf("%d.txt", i)), []byte("hello"))
	}
	took := m.number("resident_bytes") - before
	if size := len(read(t, a)); took > files*(size+64<<10) {
		t.Errorf("%d models of %d bytes and as many small files took %d bytes", files, size, took)
	}
}

// TestAttributesAreBounded fills a file, and then the store, with extended attributes.
func TestAttributesAreBounded(t *testing.T) {
	promise(t, security, "Extended attributes are bounded for a file and for all, with ENOSPC.")
	m := newMount(t, "none", "size=8M")
	value := make([]byte, 60<<10)
	fill := func(file, attr string) error {
		f, err := os.OpenFile(m.out(file), os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		return unix.Setxattr(m.out(file), attr, value, 0)
	}
	if err := fill("one", "user.a"); err != nil {
		t.Fatal(err)
	}
	if err := fill("one", "user.b"); err != nil {
		t.Fatal(err)
	}
	if err := fill("one", "user.c"); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a file took 180 KiB of attributes: %v", err)
	}
	if err := fill("one", "user.a"); err != nil {
		t.Errorf("replacing an attribute by one as large: %v", err)
	}
	const most = 4 << 10 // files; of these, about 900 find room
	for i := range most {
		err := fill(strconv.Itoa(i), "user.a")
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil || i == most-1 {
			t.Fatalf("after %d files with 60 KiB of attributes: %v", i, err)
		}
	}
	m.put(makeModel(t, "1M", 1), "a.gguf") // models have their room all the same
	m.expect("a.gguf", "state", "loaded")
}
