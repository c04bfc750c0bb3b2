package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// rude starts a Python program that says "ready" and then waits. It is ended with the test.
func rude(t *testing.T, script string, args ...string) *exec.Cmd {
	t.Helper()
	script = "import mmap, os, resource, signal, sys, threading\n" + script + "\nprint('ready', flush=True)\nsys.stdin.read()\nos._exit(0)\n"
	cmd := exec.Command("python3", append([]string{"-c", script}, args...)...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Process.Kill() // some are stopped
		_ = cmd.Wait()         // says that it was killed
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the client said %q, %v", line, err)
	}
	return cmd
}

// goesOn uses the mount as somebody who wants no more than his share.
func (m *mount) goesOn(a string) {
	m.t.Helper()
	want := read(m.t, a)
	for _, name := range []string{"other.gguf", "other.txt"} {
		m.put(a, name)
		same(m.t, m.out(name), want)
	}
	m.expect("other.gguf", "state", "loaded")
	same(m.t, m.boot("models/other.gguf/model.gguf"), want)
	write(m.t, m.boot("models/other.gguf/metadata/general.architecture"), []byte("llama"))
	must(m.t, "ls", "-lR", m.boot("models"))
	must(m.t, "rm", m.out("other.gguf"), m.out("other.txt"))
}

func TestThousandsOfOpenFiles(t *testing.T) {
	promise(t, security, "A user who opens thousands of files is stopped by nothing but a limit of its own, and hinders nobody.")
	a := makeModel(t, "1M", 1)
	m := newMount(t, tempDir(t))
	m.put(a, "a.gguf")
	rude(t, `
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
out, boot = sys.argv[1:]
fds = [os.open(out + "/a.gguf", os.O_RDONLY) for _ in range(5000)]
fds += [os.open(boot + "/models/a.gguf/tensors/output.weight/data", os.O_RDONLY) for _ in range(1000)]
fds += [os.open(boot + "/models/a.gguf/" + f, os.O_RDONLY) for f in ("wait", "state", "model.gguf") for _ in range(500)]
fds += [os.open(boot + "/events", os.O_RDONLY) for _ in range(500)]
fds += [os.open(out + "/f%d" % i, os.O_RDWR | os.O_CREAT) for i in range(2000)]`, m.out(""), m.boot(""))
	m.goesOn(a)
	must(t, "sh", "-c", `rm "$0"/f*`, m.out(""))
}

// TestDescriptorsRunOut lets a client have all that the daemon may have. It gets an
// error, what was open before goes on, and so does everything when there is room again.
func TestDescriptorsRunOut(t *testing.T) {
	a := makeModel(t, "1M", 1)
	m := newMount(t, "none")
	m.put(a, "a.gguf")
	before, err := os.Open(m.out("a.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	must(t, "prlimit", "--pid", fmt.Sprint(m.pid), "--nofile=128:")
	client := rude(t, `
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
fds = []
try:
    for i in range(1000): fds.append(os.open(sys.argv[1] + "/f%d" % i, os.O_RDWR | os.O_CREAT))
    sys.exit("the daemon has more than 128 descriptors")
except OSError as e:
    if e.errno not in (24, 23): raise`, m.out(""))
	must(t, "cat", m.boot("status")) // needs none
	if err := client.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = client.Wait()
	if b, err := io.ReadAll(before); err != nil || !bytes.Equal(b, read(t, a)) {
		t.Errorf("what was open before: %d bytes, %v", len(b), err)
	}
	must(t, "prlimit", "--pid", fmt.Sprint(m.pid), "--nofile=4096:")
	must(t, "sh", "-c", `rm "$0"/f*`, m.out(""))
	m.goesOn(a)
}

func TestReadersThatStop(t *testing.T) {
	promise(t, security, "A reader that stops, or never reads what it asked for, hinders nobody.")
	a := makeModel(t, "1M", 1)
	m := newMount(t, tempDir(t))
	m.put(a, "a.gguf")
	// Each thread waits in a read; nobody reads what the others have opened.
	rude(t, `
boot = sys.argv[1]
def wait(f): os.read(os.open(boot + f, os.O_RDONLY), 100)
for i in range(100):
    for f in ("/events", "/models/a.gguf/wait"):
        threading.Thread(target=wait, args=(f,), daemon=True).start()
fds = [os.open(boot + "/models/a.gguf/session", os.O_RDWR) for _ in range(100)]
fds += [os.open(boot + "/events", os.O_RDONLY) for _ in range(100)]`, m.boot(""))
	stopped := rude(t, `
f = open(sys.argv[1], "rb")
page = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
head = page[:100] + f.read(100)`, m.out("a.gguf"))
	if err := stopped.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		m.goesOn(a) // with events that nobody reads
	}
	m.put(makeModel(t, "1M", 2), "a.gguf")
	write(t, m.boot("ctl"), []byte("sync"))
	write(t, m.boot("models/a.gguf/ctl"), []byte("evict"))
	write(t, m.boot("models/a.gguf/ctl"), []byte("interrupt 0xFF"))
	m.expect("a.gguf", "state", "cold")
	must(t, "rm", m.out("a.gguf"))
	if err := unix.Kill(m.pid, unix.SIGTERM); err != nil { // the mount is in use
		t.Fatal(err)
	}
	m.wait()
}

// TestMappedAndCut cuts files in every way while somebody has them mapped.
func TestMappedAndCut(t *testing.T) {
	a, b := makeModel(t, "1M", 1), makeModel(t, "1M", 2)
	m := newMount(t, "none")
	m.put(a, "a.gguf")
	rude(t, `
out, boot, want, b = sys.argv[1:]
want = open(want, "rb").read()
files = [open(f, "rb") for f in (out + "/a.gguf", boot + "/models/a.gguf/model.gguf")]
maps = [mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) for f in files]
def refused(number, f):
    try: f()
    except OSError as e: assert e.errno == number, e
    else: raise Exception("not refused")
    for m in maps: assert m[:] == want
def cut():
    with open(out + "/a.gguf", "r+b") as f: f.truncate(10)
refused(26, lambda: os.truncate(out + "/a.gguf", 10))
refused(74, cut)
for command in ("cp " + b, "rm"):
    assert os.system(command + " " + out + "/a.gguf") == 0
    for m in maps: assert m[:] == want`, m.out(""), m.boot(""), a, b)
}

// hostile are writes that no command or policy is made of.
func hostile(r *rand.Rand) []byte {
	words := []string{"activate", "load", "evict", "interrupt", "set", "unset", "commit", "abort", "pin", "policy", "timeout=",
		"0xFF", "uint8", "array[string]", "general.name", "..", "/", "\n", "\x00", " ", "%n", "-1", "18446744073709551616",
		"reject_nan", "max_change", "NaN", "allow", "[", "*", "\"", "[\"a\"]", "rollback", "publish"}
	switch r.IntN(5) {
	case 0:
		b := make([]byte, r.IntN(300)+1)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	case 1:
		return bytes.Repeat([]byte(words[r.IntN(len(words))]), r.IntN(40000)+1)
	}
	var s []string
	for range r.IntN(6) + 1 {
		s = append(s, words[r.IntN(len(words))])
	}
	return []byte(strings.Join(s, " "))
}

// pester writes nonsense to a file of vector_boot.
func (m *mount) pester(name string, r *rand.Rand) {
	for range 100 {
		f, err := os.OpenFile(m.boot(name), os.O_RDWR, 0)
		if err != nil {
			m.t.Error(err)
			return
		}
		for range r.IntN(3) + 1 {
			_, _ = f.Write(hostile(r)) // most are errors; which, others test
		}
		_ = f.Close()
	}
}

func TestHostileCommands(t *testing.T) {
	promise(t, security, "A command that makes no sense fails with an error, and the daemon goes on.")
	a := makeModel(t, "1M", 1)
	m := newMount(t, "none")
	m.put(a, "a.gguf")
	must(t, "mkdir", m.boot("models/a.gguf/drafts/d"))
	var all sync.WaitGroup
	for i, name := range []string{"ctl", "models/a.gguf/ctl", "models/a.gguf/drafts/d/ctl", "models/a.gguf/policy",
		"models/a.gguf/session", "models/a.gguf/metadata/general.architecture"} {
		for j := range 2 {
			all.Go(func() { m.pester(name, rand.New(rand.NewPCG(uint64(i), uint64(j)))) })
		}
	}
	all.Wait()
	f, err := os.OpenFile(m.boot("ctl"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, c := range []byte("activate") { // one byte a write is a command a byte
		if _, err := f.Write([]byte{c}); !errors.Is(err, unix.EINVAL) {
			t.Errorf("the command %q: %v", c, err)
		}
	}
	write(t, m.boot("models/a.gguf/policy"), []byte("reject_nan no\n"))
	m.goesOn(a)
	m.put(a, "a.gguf")
	same(t, m.out("a.gguf"), read(t, a))
}

// TestRenamesRaceCommits commits to a model whose name changes all the time.
// Nothing but the tensor that is committed to differs afterwards.
func TestRenamesRaceCommits(t *testing.T) {
	a := makeModel(t, "1M", 1)
	m := newMount(t, tempDir(t))
	m.put(a, "a.gguf")
	names := []string{"a.gguf", "b.gguf"}
	var all sync.WaitGroup
	all.Go(func() {
		for i := range 200 {
			if err := os.Rename(m.out(names[i%2]), m.out(names[(i+1)%2])); err != nil {
				t.Error(err)
			}
		}
	})
	for _, name := range names {
		all.Go(func() {
			for k := range 100 {
				p := m.boot(filepath.Join("models", name, "tensors/output_norm.weight/data"))
				if old, err := os.ReadFile(p); err == nil { // it is not always there
					old[k%len(old)] ^= 1
					_ = os.WriteFile(p, old, 0)
				}
			}
		})
	}
	all.Wait()
	m.expect("a.gguf", "state", "loaded")
	have, want := read(t, m.out("a.gguf")), read(t, a)
	same(t, m.boot("models/a.gguf/model.gguf"), have)
	differ := 0
	for i := range min(len(have), len(want)) {
		if have[i] != want[i] {
			differ++
		}
	}
	if size := len(m.of("a.gguf", "tensors/output_norm.weight/data")); len(have) != len(want) || differ > size {
		t.Errorf("%d of %d bytes differ where %d were changed", differ, len(want), size)
	}
	write(t, m.boot("ctl"), []byte("sync"))
}

func TestTextsAreBounded(t *testing.T) {
	promise(t, security, "Texts that are written to the daemon are bounded, one and all together, with EFBIG and ENOSPC.")
	m := newMount(t, "none")
	m.put(makeModel(t, "1M", 1), "a.gguf")
	var open []*os.File
	if err := os.WriteFile(m.boot("models/a.gguf/policy"), make([]byte, 1<<20), 0); !errors.Is(err, unix.EFBIG) {
		t.Errorf("a policy of 1 MiB: %v", err)
	}
	extend := func(size int64) error {
		f, err := os.OpenFile(m.boot("models/a.gguf/metadata/tokenizer.ggml.tokens"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, f)
		_, err = f.WriteAt([]byte{0}, size-1)
		return err
	}
	if err := extend(65 << 20); !errors.Is(err, unix.EFBIG) {
		t.Errorf("a text of 65 MiB: %v", err)
	}
	for i := range 6 {
		if err := extend(60 << 20); i < 4 && err != nil || i >= 4 && !errors.Is(err, unix.ENOSPC) {
			t.Errorf("text %d of 60 MiB: %v", i, err)
		}
	}
	for _, f := range open {
		_ = f.Close() // zeros are no array
	}
	if info, err := os.Stat(m.logFile()); err != nil || info.Size() > 1<<20 {
		t.Errorf("the log has %d bytes, %v", info.Size(), err)
	}
}
