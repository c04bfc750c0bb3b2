package fs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
)

// shard is one of two, with one tensor of 64 KiB.
func shard(t *testing.T, no int, fill byte) []byte {
	t.Helper()
	b, err := (&ggufview.Spec{
		KV:      []ggufview.SpecKV{{Key: "split.no", Value: uint16(no)}, {Key: "split.count", Value: uint16(2)}, {Key: "split.tensors.count", Value: int32(2)}},
		Tensors: []ggufview.SpecTensor{{Name: fmt.Sprint("t", no), NE: []int64{64 << 10}, Type: ggufview.I8, Data: bytes.Repeat([]byte{fill}, 64<<10)}},
	}).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// mapFile has another process map a file, and returns a function that looks at a
// byte of the mapping. A page fault that this process, being the daemon, has to
// serve itself would hang it: Go stops the world for garbage collection, and the
// faulting thread cannot be stopped.
func mapFile(t *testing.T, name string) func(off int64) byte {
	t.Helper()
	cmd := exec.Command("python3", "-u", "-c", `
import mmap, sys
with open(sys.argv[1], "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
    for line in sys.stdin:
        print(m[int(line)])`, name)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	return func(off int64) (b byte) {
		t.Helper()
		fmt.Fprintln(in, off)
		if _, err := fmt.Fscanln(out, &b); err != nil {
			t.Fatal(err)
		}
		return b
	}
}

// A whole can be read, mapped and copied; what changes in a shard is seen in it.
func TestShardedModel(t *testing.T) {
	modes(t, func(t *testing.T, s *site) {
		m, one, two := s.vb+"/models/m.gguf", filepath.Join(s.out, "m-00001-of-00002.gguf"), filepath.Join(s.out, "m-00002-of-00002.gguf")
		write(t, two, shard(t, 1, 'b'))
		want(t, m+"/state", "failed\n")
		want(t, m+"/error", "missing: m-00001-of-00002.gguf\n")
		write(t, one, shard(t, 0, 'a'))
		want(t, m+"/state", "loaded\n")
		want(t, m+"/generation", "2\n")

		whole := []byte(read(t, m+"/model.gguf"))
		g, err := ggufview.Parse(whole, int64(len(whole)))
		if err != nil {
			t.Fatal(err)
		}
		at := g.TensorAt(1).Offset + 1000
		mapped := mapFile(t, m+"/model.gguf")
		if mapped(at) != whole[at] || mapped(0) != 'G' {
			t.Error("the mapping differs from the file")
		}

		write(t, m+"/tensors/t1/data", bytes.Repeat([]byte("c"), 64<<10))
		want(t, m+"/generation", "3\n")
		if got := read(t, m+"/model.gguf"); got[at] != 'c' || got[0] != 'G' {
			t.Errorf("after a commit there is %q", got[at])
		}
		if c := mapped(at); c != 'c' { // in place, as in a model that is one file
			t.Errorf("the mapping shows %q", c)
		}
		wantErr(t, "writing a key", os.WriteFile(m+"/metadata/split.no", []byte("1"), 0o644), unix.EROFS)

		write(t, one, shard(t, 0, 'd'))
		want(t, m+"/generation", "4\n")
		if got := read(t, m+"/model.gguf"); got[g.TensorAt(0).Offset] != 'd' || mapped(g.TensorAt(0).Offset) != 'a' {
			t.Error("a replacement is not seen by new readers alone")
		}

		endShards(t, s, one, two)
	})
}

// endShards copies the whole of m-00001-of-00002.gguf and its second part, and takes
// it away: by a file of its name, and by removing the parts.
func endShards(t *testing.T, s *site, one, two string) {
	t.Helper()
	m := s.vb + "/models/m.gguf"
	copied := t.TempDir()
	if out, err := exec.Command("cp", "-r", m, copied).CombinedOutput(); err != nil {
		t.Errorf("cp -r: %v: %s", err, out)
	}
	if out, err := exec.Command("cp", m+"/model.gguf", s.out+"/copy.gguf").CombinedOutput(); err != nil {
		t.Errorf("cp: %v: %s", err, out)
	}
	want(t, s.out+"/copy.gguf", read(t, m+"/model.gguf"))

	write(t, s.out+"/m.gguf", shard(t, 0, 'e'))
	want(t, m+"/generation", "1\n")
	for _, err := range []error{os.Remove(s.out + "/m.gguf"), os.Remove(one)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want(t, m+"/error", "missing: m-00001-of-00002.gguf\n")
	if _, err := os.Stat(m + "/model.gguf"); !os.IsNotExist(err) {
		t.Errorf("half a model: %v", err)
	}
	if err := os.Rename(two, s.out+"/x"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(m); !os.IsNotExist(err) {
		t.Errorf("a model of nothing: %v", err)
	}
}
