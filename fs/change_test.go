package fs

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
)

// smallModel has tensors a (F32, 4), b (F16, 2x2), q (Q8_0, 32) and a key k.
func smallModel(t *testing.T) []byte {
	t.Helper()
	b, err := (&ggufview.Spec{
		KV: []ggufview.SpecKV{{Key: "general.architecture", Value: "llama"}, {Key: "k", Value: uint32(7)}},
		Tensors: []ggufview.SpecTensor{
			{Name: "a", NE: []int64{4}, Type: ggufview.F32, Data: []byte("0123456789abcdef")},
			{Name: "b", NE: []int64{2, 2}, Type: ggufview.F16, Data: []byte("abcdefgh")},
			{Name: "q", NE: []int64{32}, Type: ggufview.Q8_0, Data: make([]byte, 34)},
		},
	}).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// loaded mounts and loads smallModel; it returns the model's directory.
func loaded(t *testing.T, s *site) string {
	t.Helper()
	write(t, filepath.Join(s.out, "m.gguf"), smallModel(t))
	return filepath.Join(s.vb, "models/m.gguf")
}

func TestWritingATensorCommits(t *testing.T) {
	modes(t, func(t *testing.T, s *site) {
		m := loaded(t, s)
		mapped, err := os.Open(m + "/model.gguf")
		if err != nil {
			t.Fatal(err)
		}
		defer mapped.Close()
		want(t, m+"/tensors/a/data", "0123456789abcdef")
		write(t, m+"/tensors/a/data", []byte("FEDCBA9876543210"))
		want(t, m+"/tensors/a/data", "FEDCBA9876543210")
		want(t, m+"/generation", "2\n")
		if b := read(t, filepath.Join(s.out, "m.gguf")); !strings.Contains(b, "FEDCBA9876543210") || b != read(t, m+"/model.gguf") {
			t.Error("output and model.gguf do not show the commit")
		}
		if b, err := io.ReadAll(mapped); err != nil || !strings.Contains(string(b), "FEDCBA9876543210") {
			t.Errorf("a reader that had the file open does not see the commit: %v", err)
		}
		f, err := os.OpenFile(m+"/tensors/a/data", os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("--"), 4); err != nil {
			t.Fatal(err)
		}
		want(t, m+"/tensors/a/data", "FEDCBA9876543210") // not before close
		_, err = f.WriteAt([]byte("too long"), 12)
		wantErr(t, "writing past the end", err, unix.EFBIG)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		want(t, m+"/tensors/a/data", "FEDC--9876543210")
		wantErr(t, "a wrong size", os.WriteFile(m+"/tensors/a/data", []byte("short"), 0o644), unix.EINVAL)
		want(t, m+"/tensors/a/data", "FEDC--9876543210")
		want(t, m+"/generation", "3\n")
		wantErr(t, "truncate by path", os.Truncate(m+"/tensors/a/data", 3), unix.ETXTBSY)
	})
}

func TestWritingValuesQuantises(t *testing.T) {
	s := mount(t)
	m := loaded(t, s)
	var vals []byte
	for i := range 32 {
		vals = binary.LittleEndian.AppendUint32(vals, uint32(0x42fe0000)*uint32(i%2)) // 0 or 127
	}
	write(t, m+"/tensors/q/f32", vals)
	want(t, m+"/tensors/q/f32", string(vals))
	raw := read(t, m+"/tensors/q/data")
	if raw[2] != 0 || raw[3] != 127 {
		t.Errorf("stored as %x", raw)
	}
}

func TestWritingAKey(t *testing.T) {
	s := mount(t)
	m := loaded(t, s)
	write(t, m+"/metadata/k", []byte("8\n"))
	want(t, m+"/metadata/k", "8\n")
	wantErr(t, "a value of another type", os.WriteFile(m+"/metadata/k", []byte("many"), 0o644), unix.EINVAL)
	write(t, m+"/ctl", []byte("set general.name string a model with a name"))
	want(t, m+"/metadata/general.name", "a model with a name")
	write(t, m+"/ctl", []byte("unset k"))
	gone(t, m+"/metadata/k")
	want(t, m+"/generation", "4\n")
	want(t, m+"/tensors/a/data", "0123456789abcdef")
	want(t, filepath.Join(s.out, "m.gguf"), read(t, m+"/model.gguf"))
}

func TestDrafts(t *testing.T) {
	s := mount(t)
	m := loaded(t, s)
	for _, d := range []string{"one", "two"} {
		if err := os.Mkdir(m+"/drafts/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	one, two := m+"/drafts/one", m+"/drafts/two"
	write(t, one+"/tensors/a/data", []byte("AAAAAAAAAAAAAAAA"))
	write(t, one+"/tensors/b/data", []byte("BBBBBBBB"))
	write(t, one+"/ctl", []byte("set general.name string drafted"))
	write(t, two+"/tensors/b/data", []byte("CCCCCCCC"))
	want(t, one+"/tensors/a/data", "AAAAAAAAAAAAAAAA")
	want(t, two+"/tensors/a/data", "0123456789abcdef")
	want(t, one+"/staged", "metadata/general.name\ntensors/a\ntensors/b\n")
	want(t, m+"/tensors/a/data", "0123456789abcdef")
	want(t, m+"/generation", "1\n")
	write(t, one+"/ctl", []byte("commit\n"))
	want(t, m+"/generation", "2\n")
	want(t, m+"/tensors/b/data", "BBBBBBBB")
	want(t, m+"/metadata/general.name", "drafted")
	wantErr(t, "the second draft of one tensor", os.WriteFile(two+"/ctl", []byte("commit"), 0), unix.EBUSY)
	want(t, m+"/tensors/b/data", "BBBBBBBB")
	if err := os.Remove(two); err != nil {
		t.Fatal(err)
	}
	gone(t, two)
	if err := os.Mkdir(two, 0o755); err != nil {
		t.Fatal(err)
	}
	want(t, two+"/staged", "")
	want(t, two+"/tensors/b/data", "BBBBBBBB")
}

func TestPolicyFile(t *testing.T) {
	s := mount(t)
	m := loaded(t, s)
	write(t, m+"/policy", []byte("reject_nan yes\nforbid b\n"))
	want(t, m+"/policy", "reject_nan yes\nmax_change 0\nallow \nforbid b\n")
	wantErr(t, "a forbidden tensor", os.WriteFile(m+"/tensors/b/data", []byte("12345678"), 0), unix.EPERM)
	nan := []byte("\x00\x00\xc0\x7f456789abcdef")[:16]
	wantErr(t, "NaN", os.WriteFile(m+"/tensors/a/data", nan, 0), unix.EPERM)
	wantErr(t, "nonsense", os.WriteFile(m+"/policy", []byte("be nice"), 0), unix.EINVAL)
	if log := read(t, s.vb+"/events.log"); !strings.Contains(log, "value NaN at element 0") {
		t.Errorf("the events do not say why: %s", log)
	}
}

func TestStreams(t *testing.T) {
	s := mount(t)
	m := loaded(t, s)
	wait, err := os.Open(m + "/wait")
	if err != nil {
		t.Fatal(err)
	}
	defer wait.Close()
	events, err := os.Open(s.vb + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	session, err := os.OpenFile(m+"/session", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := os.ReadDir(m + "/sessions")
	if err != nil || len(ids) != 1 {
		t.Fatalf("sessions: %v %v", ids, err)
	}
	if text := read(t, m+"/sessions/"+ids[0].Name()); !strings.Contains(text, "acked 0\n") {
		t.Error(text)
	}
	woken := make(chan string)
	go func() {
		b := make([]byte, 100)
		n, err := wait.Read(b)
		woken <- fmt.Sprint(string(b[:n]), err)
	}()
	write(t, m+"/tensors/a/data", []byte("FEDCBA9876543210"))
	if got := <-woken; got != "2<nil>" {
		t.Errorf("wait gave %q", got)
	}
	interrupted(t, m, session)
	er := bufio.NewReader(events)
	for _, want := range []string{`"attach"`, `"commit"`, `"interrupt"`} {
		if line, err := er.ReadString('\n'); !strings.Contains(line, want) || err != nil {
			t.Errorf("event %q, %v, want %s", line, err, want)
		}
	}
	session.Close()
	names, err := os.ReadDir(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range names {
		if e.Name() == "wait" || e.Name() == "session" {
			t.Errorf("%s is listed: tools that walk the tree would wait on it", e.Name())
		}
	}
}

// interrupted answers an interrupt through a session that has heard of generation 2,
// and leaves one without an answer.
func interrupted(t *testing.T, m string, session *os.File) {
	t.Helper()
	answer := make(chan error)
	go func() { answer <- os.WriteFile(m+"/ctl", []byte("interrupt 0xFF timeout=1m"), 0) }()
	r := bufio.NewReader(session)
	number := ""
	for _, want := range []string{"generation 2\n", "interrupt 0xff\n"} {
		line, err := r.ReadString('\n')
		n, op, _ := strings.Cut(line, " ")
		if number = n; op != want || err != nil {
			t.Errorf("request %q, %v, want %q", line, err, want)
		}
	}
	if _, err := session.WriteString("ack " + number); err != nil {
		t.Error(err)
	}
	if err := <-answer; err != nil {
		t.Errorf("the interrupt was acknowledged: %v", err)
	}
	_, err := session.WriteString("ack 7")
	wantErr(t, "acknowledging nothing", err, unix.EINVAL)

	ctl, err := os.OpenFile(m+"/ctl", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ctl.Close()
	_, err = ctl.WriteString("interrupt 1 timeout=1ms")
	wantErr(t, "nobody answers", err, unix.ETIMEDOUT)
	b := make([]byte, 200)
	n, _ := ctl.ReadAt(b, 0)
	if !strings.Contains(string(b[:n]), "no acknowledgement from process ") { // which thread opened the session is Go's choice
		t.Errorf("ctl reads %q", b[:n])
	}
}

func TestControlPage(t *testing.T) {
	s := mount(t)
	m := loaded(t, s)
	if s.rt.Passthrough() != "on" {
		t.Fatal("needs passthrough: run as root on Linux 6.9 or newer")
	}
	f, err := os.OpenFile(m+"/control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(page)
	le := binary.LittleEndian
	if string(page[:8]) != "VBOOTCTL" || le.Uint32(page[8:]) != 1 || le.Uint64(page[24:]) != 1 {
		t.Fatalf("page %x", page[:48])
	}
	seq, bell := le.Uint64(page[16:]), le.Uint32(page[64:])
	write(t, m+"/tensors/a/data", []byte("FEDCBA9876543210"))
	if le.Uint64(page[16:]) != seq+2 || le.Uint64(page[24:]) != 2 || le.Uint32(page[64:]) == bell {
		t.Errorf("after a commit: sequence %d, generation %d", le.Uint64(page[16:]), le.Uint64(page[24:]))
	}
	write(t, m+"/ctl", []byte("interrupt 0xFF"))
	if le.Uint32(page[68:]) != 0xff {
		t.Errorf("opcode %d", le.Uint32(page[68:]))
	}
}

func TestReaders(t *testing.T) {
	s := mount(t)
	m := loaded(t, s)
	f, err := os.Open(filepath.Join(s.out, "m.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text := read(t, m+"/readers")
	for strings.Count(text, "\n") > 2 { // the kernel tells of a close after close(2) has returned
		text = read(t, m+"/readers")
	}
	if strings.Count(text, "\n") != 2 || !strings.HasSuffix(text, "\t1\n") {
		t.Errorf("readers: %q", text)
	}
}

// TestOnlyAChosenUserCommits lets everybody stage and one user commit.
func TestOnlyAChosenUserCommits(t *testing.T) {
	s := mount(t, func(o *Options) { o.AllowOther = true })
	m := loaded(t, s)
	for p := filepath.Dir(s.mnt); p != "/"; p = filepath.Dir(p) { // the way to the mount is private to the test
		info, err := os.Stat(p)
		if err == nil && info.Mode()&0o001 == 0 {
			err = os.Chmod(p, info.Mode()|0o011)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(s.out, "m.gguf"), 0o666); err != nil {
		t.Fatal(err)
	}
	d := m + "/drafts/d"
	if err := os.Mkdir(d, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(d+"/ctl", 1001, 1001); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(d+"/ctl", 0o600); err != nil {
		t.Fatal(err)
	}
	as := func(uid string, script string) (string, error) {
		out, err := exec.Command("setpriv", "--reuid="+uid, "--regid="+uid, "--clear-groups", "sh", "-c", script, d).CombinedOutput()
		return string(out), err
	}
	if out, err := as("1002", `printf FEDCBA9876543210 >"$0/tensors/a/data"`); err != nil {
		t.Fatalf("staging: %v: %s", err, out)
	}
	if out, err := as("1002", `echo commit >"$0/ctl"`); err == nil || !strings.Contains(out, "ermission denied") {
		t.Errorf("another user committed: %v: %s", err, out)
	}
	want(t, m+"/generation", "1\n")
	if out, err := as("1001", `echo commit >"$0/ctl"`); err != nil {
		t.Errorf("the chosen user: %v: %s", err, out)
	}
	want(t, m+"/generation", "2\n")
}

// TestWaitingReadersDoNotHoldAnUnmount and end with a signal.
func TestWaitingReadersDoNotHoldAnUnmount(t *testing.T) {
	s := mount(t)
	m := loaded(t, s)
	var waiting []*exec.Cmd
	for _, p := range []string{m + "/wait", m + "/session", s.vb + "/events", s.vb + "/events"} {
		c := exec.Command("cat", p)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, c)
	}
	for s.rt.AttachedSessions() < 1 {
		runtime.Gosched() // cat has opened the session by then
	}
	if err := waiting[0].Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := waiting[0].Wait(); err == nil {
		t.Error("cat was not interrupted")
	}
	if err := s.Unmount(context.Background()); err != nil {
		t.Error(err)
	}
	for _, c := range waiting[1:] {
		_ = c.Wait() // ends: nothing more will come
	}
}
