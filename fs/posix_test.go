package fs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// noPosix are contract tests that a local file system does not pass either.
var noPosix = map[string]string{
	"FcntlFlockLocksFile": "expects two POSIX locks of one process to conflict; they never do (fcntl(2))",
}

// TestPosix runs the contract tests of go-fuse on the output directory.
func TestPosix(t *testing.T) { modes(t, posix) }

// TestPosixWithSource runs them while what they make is written back behind them.
func TestPosixWithSource(t *testing.T) {
	posix(t, mount(t, func(o *Options) { o.Source = t.TempDir() }))
}

func posix(t *testing.T, s *site) {
	for name, test := range posixtest.All {
		if noPosix[name] != "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(s.out, name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			test(t, dir)
		})
	}
}
