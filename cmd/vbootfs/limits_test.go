package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
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
