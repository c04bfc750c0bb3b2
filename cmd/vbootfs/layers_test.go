package main

import (
	"os/exec"
	"strings"
	"testing"
)

// layers is the house: which package may import which, besides the standard
// library. docs/ARCHITECTURE.md says why.
var layers = map[string][]string{
	"vbootfs/ggufview":    {},
	"vbootfs/shm":         {"golang.org/x/sys/unix"},
	"vbootfs/vectorboot":  {"vbootfs/ggufview", "vbootfs/shm", "golang.org/x/sys/unix"},
	"vbootfs/fs/tree":     {"vbootfs/vectorboot", "vbootfs/ggufview", "vbootfs/shm", "golang.org/x/sys/unix", "github.com/cespare/xxhash/v2", "github.com/dustin/go-humanize", "github.com/prometheus/"},
	"vbootfs/fs":          {"vbootfs/fs/tree", "vbootfs/vectorboot", "vbootfs/ggufview", "vbootfs/shm", "golang.org/x/sys/unix", "github.com/cespare/xxhash/v2", "github.com/hanwen/go-fuse/v2/", "github.com/moby/sys/mountinfo", "github.com/sirupsen/logrus"},
	"vbootfs/cmd/vbootfs": {"vbootfs/", "golang.org/x/sys/unix", "github.com/dustin/go-humanize", "github.com/sirupsen/logrus", "github.com/spf13/"},

	"vbootfs/scripts/frame":     {"golang.org/x/sys/unix"},
	"vbootfs/scripts/suite":     {"vbootfs/scripts/frame", "golang.org/x/sys/unix"},
	"vbootfs/scripts/soaker":    {"vbootfs/scripts/frame", "golang.org/x/sys/unix"},
	"vbootfs/scripts/benchmark": {"vbootfs/scripts/frame", "vbootfs/ggufview", "golang.org/x/sys/unix", "github.com/hanwen/go-fuse/v2/"},
}

func TestLayers(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", "vbootfs/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		allowed, known := layers[f[0]]
		if !known {
			t.Errorf("package %s has no place in the house", f[0])
		}
		for _, imp := range f[1:] {
			if strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") || strings.HasPrefix(imp, "vbootfs/") {
				if !permitted(allowed, imp) {
					t.Errorf("%s imports %s", f[0], imp)
				}
			}
		}
	}
}

func permitted(allowed []string, imp string) bool {
	for _, a := range allowed {
		if imp == a || strings.HasSuffix(a, "/") && strings.HasPrefix(imp, a) {
			return true
		}
	}
	return false
}
