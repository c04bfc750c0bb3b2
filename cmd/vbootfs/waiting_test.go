package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWaitingInEveryWay(t *testing.T) {
	quote(t, "`poll`, `select` and `epoll`, level- and edge-triggered, wait for these files, and `O_NONBLOCK` makes `read()` fail with EAGAIN instead of waiting.",
		"A signal ends a read that waits (EINTR).",
		"While an interrupt waits, other commands that are written to the same `ctl` wait for it; a signal ends it (EINTR).")
	m := newMount(t, "none")
	m.put(makeModel(t, "1M", 1), "a.gguf")
	if out, code := m.run("python3", "testdata/waiting.py", m.boot(""), "a.gguf"); code != 0 {
		t.Error(out)
	}
}

// TestGoWaitsWithItsPoller: os.File of Go hands files that can be polled to the
// runtime's poller, so a deadline works.
func TestGoWaitsWithItsPoller(t *testing.T) {
	m := newMount(t, "none")
	f, err := os.Open(m.boot("events"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Read(make([]byte, 100)); !os.IsTimeout(err) {
		t.Errorf("a read whose time is over: %v", err)
	}
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1)
	go func() {
		b := make([]byte, 4096)
		n, err := f.Read(b)
		lines <- fmt.Sprint(string(b[:n]), err)
	}()
	m.put(makeModel(t, "1M", 1), "a.gguf")
	if line := <-lines; !strings.Contains(line, `"load"`) || !strings.HasSuffix(line, "<nil>") {
		t.Errorf("read %s", line)
	}
}

// TestWaitingReadsCostNoThreads lets many programs wait at once.
func TestWaitingReadsCostNoThreads(t *testing.T) {
	quote(t, "A read that waits costs the daemon neither a thread nor a goroutine.")
	const readers = 1000
	m := newMount(t, "none")
	var wg sync.WaitGroup
	for range readers {
		fd, err := unix.Open(m.boot("events"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer unix.Close(fd)
			b := make([]byte, 4096)
			n, err := unix.Read(fd, b)
			for err == unix.EINTR { // Go sends itself signals
				n, err = unix.Read(fd, b)
			}
			if err != nil || !bytes.Contains(b[:n], []byte(`"load"`)) {
				t.Errorf("read %q, %v", b[:n], err)
			}
		})
	}
	until(t, "all wait", func() bool { return waiting("self") == readers })
	if n := threads(t, m.pid); n > readers/10 {
		t.Errorf("%d threads serve %d waiting reads", n, readers)
	}
	m.put(makeModel(t, "1M", 1), "a.gguf")
	wg.Wait()
}

// until returns when something has become true that has to.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	look, late := time.Tick(time.Millisecond), time.After(patience)
	for !is() {
		select {
		case <-look:
		case <-late:
			t.Fatalf("never: %s", what)
		}
	}
}

// waiting counts threads of a process that wait for the answer of a FUSE daemon.
func waiting(pid string) (n int) {
	found, _ := filepath.Glob("/proc/" + pid + "/task/*/wchan")
	for _, name := range found {
		if b, err := os.ReadFile(name); err == nil && string(b) == "request_wait_answer" {
			n++
		}
	}
	return n
}

func threads(t *testing.T, pid int) int {
	t.Helper()
	found, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(found)
}

// TestWaitingReadsDoNotDelayAnUnmount: who waits is let go with the end of the file.
func TestWaitingReadsDoNotDelayAnUnmount(t *testing.T) {
	quote(t, "When the mount is detached, or the model removed, the read gives nothing (end of file).")
	m := newMount(t, "none")
	m.put(makeModel(t, "1M", 1), "a.gguf")
	var cats []*exec.Cmd
	for _, name := range []string{"events", "models/a.gguf/wait", "models/a.gguf/session"} {
		for range 8 {
			c := exec.Command("cat", m.boot(name))
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			cats = append(cats, c)
		}
	}
	for _, c := range cats {
		until(t, "cat waits", func() bool { return waiting(strconv.Itoa(c.Process.Pid)) == 1 })
	}
	if err := unix.Kill(m.pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for _, c := range cats {
		_ = c.Wait() // some have printed events and then failed to close: only their end counts
	}
	m.wait()
}

// busy is what programs do again and again until the daemon is gone. $0 is
// vector_boot, $1 output/, $2 a number that tells them apart.
var busy = []string{
	`d=$0/models/a.gguf/drafts/$2; mkdir $d; printf abcd | dd of=$d/tensors/output.weight/data conv=notrunc; echo commit >$d/ctl; rmdir $d`,
	`n=$((n + 1)); printf %04d $n | dd of=$0/models/a.gguf/tensors/output_norm.weight/data conv=notrunc`,
	`cp $1/a.gguf $1/$2.gguf; mv $1/$2.gguf $1/x$2.gguf; rm $1/x$2.gguf`,
	`mkdir $1/$2; touch $1/$2/a; mv $1/$2/a $1/$2/b; ls -l $1 $0/models; rm $1/$2/b; rmdir $1/$2`,
	`ls -lR $0/models/a.gguf`,
	`cat $1/a.gguf $0/models/a.gguf/model.gguf >/dev/null`,
	`python3 -c 'import mmap, sys; sum(mmap.mmap(open(sys.argv[1], "rb").fileno(), 0, prot=mmap.PROT_READ)[::4096])' $1/a.gguf`,
	`echo interrupt 1 >$0/models/a.gguf/ctl`,
}

// TestKilledDaemonLeavesNobodyHanging kills the daemon while programs change
// names and commit. All of them must get errors and end.
func TestKilledDaemonLeavesNobodyHanging(t *testing.T) {
	const rounds = 6
	quote(t, "Programs that wait for a daemon which is killed get an error; none is left hanging.")
	r := rand.New(rand.NewPCG(6, 7))
	from := makeModel(t, "1M", 1)
	m := unmounted(t)
	for round := range rounds {
		m.start("none", [][]string{nil, {"no_passthrough"}}[round%2]...)
		m.put(from, "a.gguf")
		var work []*exec.Cmd
		for i, script := range append(busy, busy...) {
			c := exec.Command("sh", "-c", "while [ -e $0/version ]; do "+script+"; done", m.boot(""), m.out(""), strconv.Itoa(i))
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			work = append(work, c)
		}
		events := 10 + r.IntN(200)
		until(t, "they work", func() bool { return bytes.Count(read(t, m.boot("events.log")), []byte("\n")) >= events })
		m.kill()
		for i, c := range work {
			ended(t, c, busy[i%len(busy)])
		}
	}
	m.start("none") // which takes the dead mount away
}

// ended waits for the end of a program, and fails when it hangs.
func ended(t *testing.T, c *exec.Cmd, what string) {
	t.Helper()
	end := make(chan struct{})
	go func() {
		_ = c.Wait() // it got an error, as it should
		close(end)
	}()
	select {
	case <-end:
	case <-time.After(patience):
		_ = c.Process.Kill()
		t.Errorf("hangs: %s", what)
	}
}
