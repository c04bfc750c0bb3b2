package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMoreFilesThanDescriptors: the daemon needs a descriptor for each file that
// the kernel remembers, and makes it forget before they run out.
func TestMoreFilesThanDescriptors(t *testing.T) {
	for _, mode := range []string{"allow_other", "no_passthrough"} {
		t.Run(mode, func(t *testing.T) {
			m := unmounted(t)
			opts := strings.Join([]string{mode, "segdir=" + m.segs, "log=" + m.logFile()}, ",")
			// Without the capability root cannot raise the limit again.
			must(t, "prlimit", "--nofile=500:500", "setpriv", "--bounding-set", "-sys_resource", binary, "none", m.dir, "-o", opts)
			m.adopt()
			const n = 3000
			for i := range n {
				d := m.out(fmt.Sprintf("d%d", i%1500))
				if err := os.MkdirAll(d, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(fmt.Sprintf("%s/f%d", d, i), []byte("x"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if found := must(t, "find", m.out(""), "-type", "f", "-size", "1"); strings.Count(found, "\n") != n {
				t.Errorf("find finds %d files, want %d", strings.Count(found, "\n"), n)
			}
			for i := range n {
				same(t, m.out(fmt.Sprintf("d%d/f%d", i%1500, i)), []byte("x"))
			}
			must(t, "rm", "-r", m.out("d1"))
		})
	}
}

// TestMemoryComesBack though the kernel remembers everything about the model that
// is gone. Names below the mount are not used meanwhile.
func TestMemoryComesBack(t *testing.T) {
	const mib = 1 << 20
	m := newMount(t, "none", "size=64M") // little of it is for earlier generations
	falls := func(to int64) {
		t.Helper()
		var st unix.Statfs_t
		for end := time.Now().Add(patience); ; {
			if err := unix.Statfs(m.dir, &st); err != nil {
				t.Fatal(err)
			}
			used := int64(st.Blocks-st.Bfree) * st.Bsize
			if used < to {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%d bytes are in use", used)
			}
		}
	}
	m.put(makeModel(t, "8M", 1), "a.gguf")
	must(t, "ls", "-lR", m.boot(""))
	m.put(makeModel(t, "8M", 2), "a.gguf")
	falls(12 * mib)
	must(t, "ls", "-lR", m.boot(""))
	reader, err := os.Open(m.boot("models/a.gguf/model.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	must(t, "rm", m.out("a.gguf"))
	reader.Close()
	falls(mib)
}
