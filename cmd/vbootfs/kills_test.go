package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestKills kills the daemon at random points while processes write, replace,
// rename, remove, commit to, evict and read models, and in some rounds the next
// daemon while it recovers, or shared memory is lost too. Afterwards every
// invariant holds, every act that was done before has its effect, the one that was
// under way has all of it or none, and no process hangs.
//
// VBOOTFS_KILL_ROUNDS and VBOOTFS_KILL_SEED make more and other rounds.
func TestKills(t *testing.T) {
	for _, sentence := range []string{
		"After a SIGKILL of the daemon at any point, the next mount of the same SOURCE shows every change whose system call had returned.",
		"The change that was under way when the daemon was killed is there whole or not at all; of a file that was being written for the " +
			"first time there may be a part, which is a failed model.",
		"Programs that use the mount when the daemon is killed get ENOTCONN or ECONNABORTED, or EIO from an open under way; none hangs.",
		"What a program has mapped when the daemon is killed stays readable and whole.",
	} {
		promise(t, semanticsPage, sentence)
	}
	k := &kills{
		t: t, dir: makeBodies(t), source: tempDir(t), m: unmounted(t),
		r: rand.New(rand.NewPCG(setting(t, "VBOOTFS_KILL_SEED", 1), 11)), worlds: []world{{}, {}},
	}
	var err error
	if k.b, err = loadBodies(k.dir); err != nil {
		t.Fatal(err)
	}
	k.m.start(k.source)
	k.prepare()
	rounds := setting(t, "VBOOTFS_KILL_ROUNDS", 8)
	for i := range rounds {
		k.round(i%4 == 3)
		if t.Failed() {
			t.Fatalf("in round %d of %d", i, rounds)
		}
	}
	t.Logf("%d rounds, %d acts done", rounds, k.acts)
}

// setting is a setting of the environment.
func setting(t *testing.T, name string, otherwise uint64) uint64 {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// kills is the state of the test: a world for each client that writes, which has
// a directory of its own.
type kills struct {
	t           *testing.T
	m           *mount
	r           *rand.Rand
	b           *bodies
	dir, source string
	worlds      []world
	acts        int
}

func home(i int) string { return "w" + strconv.Itoa(i) }

// prepare gives each client its files.
func (k *kills) prepare() {
	k.t.Helper()
	for i, w := range k.worlds {
		if err := os.MkdirAll(k.m.out(home(i)), 0o755); err != nil {
			k.t.Fatal(err)
		}
		for j, name := range append(append([]string{}, keepNames...), worldNames...) {
			w[name] = body{1 + j%len(k.b.versions), 0}
			if err := writeSynced(k.m.out(home(i)+"/"+name), k.b.bytes(w[name])); err != nil {
				k.t.Fatal(err)
			}
		}
	}
}

// round lets the clients work, kills, and looks at what is left. lose: shared
// memory goes too, as when the machine is switched off.
func (k *kills) round(lose bool) {
	k.t.Helper()
	seed := k.r.Uint64()
	procs := k.clients(seed)
	k.m.kill()
	for _, p := range procs {
		p.ended(k.m)
	}
	if lose {
		k.m.reboot()
	} else if k.r.IntN(3) == 0 {
		k.killInRecovery()
	}
	k.m.start(k.source)
	for i := range k.worlds {
		k.acts += procs[i].acts
		k.verify(i, seed+uint64(i), procs[i].acts, lose)
	}
	k.m.settled()
	k.m.check("--full")
}

// process is a client.
type process struct {
	cmd    *exec.Cmd
	out    *bufio.Scanner
	stderr strings.Builder
	acts   int // done
}

// clients starts the writers and a reader for each, and returns when one of
// the writers has done some acts.
func (k *kills) clients(seed uint64) (procs []*process) {
	k.t.Helper()
	for i, w := range k.worlds {
		e := errand{"writer", k.m.out(home(i)), k.m.boot("models/" + home(i)), k.dir, w, seed + uint64(i)}
		procs = append(procs, k.spawn(e))
	}
	for i := range k.worlds {
		procs = append(procs, k.spawn(errand{Kind: "reader", Out: k.m.out(home(i)), Bodies: k.dir}))
	}
	want := 1 + k.r.IntN(25)
	for p := procs[0]; p.acts < want; {
		if !p.out.Scan() {
			err := p.cmd.Wait()
			k.t.Fatalf("a client ended early: %v: %s", err, &p.stderr)
		}
		p.acts++
	}
	return procs
}

func (k *kills) spawn(e errand) *process {
	k.t.Helper()
	self, err := os.Executable()
	if err != nil {
		k.t.Fatal(err)
	}
	text, err := json.Marshal(e)
	if err != nil {
		k.t.Fatal(err)
	}
	p := &process{cmd: exec.Command(self)}
	p.cmd.Env = append(os.Environ(), clientEnv+"="+string(text))
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { _ = p.cmd.Process.Kill() }) // it has ended unless the test failed
	p.out = bufio.NewScanner(out)
	return p
}

// ended waits for a client after the daemon is gone. One that hangs is shown,
// and let go by force.
func (p *process) ended(m *mount) {
	m.t.Helper()
	hung := time.AfterFunc(patience, func() {
		m.t.Errorf("a client hangs after the daemon was killed:\n%s", stacks(p.cmd.Process.Pid))
		abort(m.t, m.dir)
	})
	defer hung.Stop()
	for p.out.Scan() {
		p.acts++
	}
	if err := p.cmd.Wait(); err != nil {
		m.t.Errorf("a client failed: %v: %s", err, &p.stderr)
	}
}

// stacks shows where in the kernel the threads of a process are.
func stacks(pid int) string {
	var b strings.Builder
	names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stack", pid)) // the pattern is right
	for _, name := range names {
		text, err := os.ReadFile(name)
		fmt.Fprintf(&b, "%s: %v\n%s", name, err, text)
	}
	return b.String()
}

// abort ends the connection of a FUSE mount.
func abort(t testing.TB, dir string) {
	t.Helper()
	control := tempDir(t)
	if err := unix.Mount("fusectl", control, "fusectl", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(control, unix.MNT_DETACH)
	if err := os.WriteFile(filepath.Join(control, connection(t, dir), "abort"), []byte("1"), 0); err != nil {
		t.Error(err)
	}
}

// connection is the number of a mount's connection: the minor number of its device.
func connection(t testing.TB, dir string) string {
	t.Helper()
	for line := range strings.Lines(string(read(t, "/proc/self/mountinfo"))) {
		if f := strings.Fields(line); f[4] == dir {
			_, minor, _ := strings.Cut(f[2], ":")
			return minor
		}
	}
	t.Fatalf("%s is not mounted", dir)
	return ""
}

// killInRecovery starts a daemon and kills it soon: at a time of its start that
// is as random as the machine.
func (k *kills) killInRecovery() {
	k.t.Helper()
	cmd := exec.Command(binary, "-f", k.source, k.m.dir, "-o", "segdir="+k.m.segs+",log="+k.m.logFile())
	if err := cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	time.Sleep(time.Duration(k.r.IntN(200)) * time.Millisecond)
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // killed
}

// verify compares what is left of a client's files with what it has done.
func (k *kills) verify(i int, seed uint64, acts int, lost bool) {
	k.t.Helper()
	was, under := after(k.worlds[i], seed, acts)
	may := world{}
	for name, x := range was {
		may[name] = x
	}
	may.apply(under)
	have := k.observe(i, under, lost)
	names := worldNames
	if lost { // only what was synced is promised
		names = nil
	}
	for _, name := range append(append([]string{}, names...), keepNames...) {
		if have[name] != was[name] && have[name] != may[name] {
			k.t.Errorf("%s/%s is %v, want %v or, after %+v, %v", home(i), name, have[name], was[name], under, may[name])
		}
	}
	both := func(w world) [2]body { return [2]body{w[under.A], w[under.B]} }
	if under.Kind == "rename" && !lost && both(have) != both(was) && both(have) != both(may) {
		k.t.Errorf("%s: half of %+v: %v", home(i), under, have)
	}
	k.worlds[i] = have
}

// observe reads a client's files, and removes what the act under way has left
// half done: a part of a new file, or what was to replace one.
func (k *kills) observe(i int, under act, lost bool) world {
	k.t.Helper()
	have := world{}
	ents, err := os.ReadDir(k.m.out(home(i)))
	if err != nil {
		k.t.Fatal(err)
	}
	for _, e := range ents {
		name := e.Name()
		p := home(i) + "/" + name
		content := read(k.t, k.m.out(p))
		x, whole := k.b.is(content)
		switch {
		case whole && strings.HasSuffix(name, ".gguf"):
			have[name] = x
			continue
		case !whole && !k.b.part(content):
			k.t.Errorf("%s: %d bytes that nobody wrote", p, len(content))
		case !lost && !strings.HasPrefix(name, under.A):
			k.t.Errorf("%s: %d bytes; under way was %+v", p, len(content), under)
		case strings.HasSuffix(name, ".gguf") && len(content) > 0:
			k.m.expect(p, "state", "failed")
		}
		if err := os.Remove(k.m.out(p)); err != nil {
			k.t.Error(err)
		}
	}
	return have
}
