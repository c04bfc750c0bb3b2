package main

import (
	"bufio"
	"bytes"
	stdbinary "encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
)

// These tests run the clients in examples/.

const examples = "../../examples"

// program is a client that a test talks with, a line at a time.
type program struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	err bytes.Buffer
}

// launch starts a program. It does not outlive the test.
func launch(t testing.TB, name string, args ...string) *program {
	t.Helper()
	p := &program{t: t, cmd: exec.Command(name, args...)}
	p.cmd.Stderr = &p.err
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

// say writes a line that the program reads.
func (p *program) say(line string) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, line); err != nil {
		p.t.Fatalf("%v: %v: %s", p.cmd.Args, err, &p.err)
	}
}

// until reads lines up to one that contains text.
func (p *program) until(text string) string {
	p.t.Helper()
	for p.out.Scan() {
		if strings.Contains(p.out.Text(), text) {
			return p.out.Text()
		}
	}
	_ = p.cmd.Wait()
	p.t.Fatalf("%v ended without %q: %s", p.cmd.Args, text, &p.err)
	return ""
}

// end reads what is left, and checks that the program ends well.
func (p *program) end() (lines []string) {
	p.t.Helper()
	p.in.Close()
	for p.out.Scan() {
		lines = append(lines, p.out.Text())
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("%v: %v: %s", p.cmd.Args, err, &p.err)
	}
	return lines
}

// kill ends the program as nothing can prepare for.
func (p *program) kill() {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

// events follows what happens in a mount from now on.
func (m *mount) events() (until func(event string)) {
	m.t.Helper()
	f, err := os.Open(m.boot("events"))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { f.Close() })
	lines := bufio.NewScanner(f)
	return func(event string) {
		m.t.Helper()
		var seen []string
		for lines.Scan() {
			if seen = append(seen, lines.Text()); strings.Contains(lines.Text(), `"event":"`+event+`"`) {
				return
			}
		}
		m.t.Fatalf("no event %s, %v, among\n%s", event, lines.Err(), strings.Join(seen, "\n"))
	}
}

// rustExamples builds examples/rust/vector_boot, once, and returns where the programs are.
var rustExamples = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("cargo", "build", "--quiet", "--release", "--locked", "--offline", "--bins", "--examples")
	cmd.Dir = filepath.Join(examples, "rust/vector_boot")
	cmd.Env = append(os.Environ(), "CARGO_TARGET_DIR="+filepath.Join(scratch, "cargo"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("cargo build: %w: %s", err, out)
	}
	return filepath.Join(scratch, "cargo/release"), err
})

func rustExample(t testing.TB, name string) string {
	t.Helper()
	dir, err := rustExamples()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

var cReader = sync.OnceValues(func() (string, error) {
	name := filepath.Join(scratch, "reader")
	out, err := exec.Command("cc", "-O2", "-std=c11", "-pthread", "-Wall", "-Wextra", "-Werror", "-o", name,
		filepath.Join(examples, "c/reader.c")).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("cc: %w: %s", err, out)
	}
	return name, err
})

func reader(t testing.TB) string {
	t.Helper()
	name, err := cReader()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// tinyModel is a model with which llama.cpp generates text.
const tinyModel = "testdata/micro-llama-F16.gguf"

// uniform is n float32 that are all v.
func uniform(n int, v float32) []byte {
	one := stdbinary.LittleEndian.AppendUint32(nil, math.Float32bits(v))
	return bytes.Repeat(one, n)
}

// flatModel has two tensors, a and b, of nothing but 1: the number of its generation.
func flatModel(t testing.TB) string {
	t.Helper()
	b, err := (&ggufview.Spec{
		KV: []ggufview.SpecKV{{Key: "general.architecture", Value: "llama"}},
		Tensors: []ggufview.SpecTensor{
			{Name: "a", NE: []int64{1 << 14}, Type: ggufview.F32, Data: uniform(1<<14, 1)},
			{Name: "b", NE: []int64{1 << 8, 1 << 10}, Type: ggufview.F32, Data: uniform(1<<18, 1)},
		},
	}).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(tempDir(t), "flat.gguf")
	write(t, name, b)
	return name
}

// commitFlat commits both tensors of a flat model in one draft.
func commitFlat(t testing.TB, model string, v float32) {
	t.Helper()
	draft := model + "/drafts/flat"
	if err := os.Mkdir(draft, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, draft+"/tensors/a/data", uniform(1<<14, v))
	write(t, draft+"/tensors/b/data", uniform(1<<18, v))
	write(t, draft+"/ctl", []byte("commit"))
	if err := os.Remove(draft); err != nil {
		t.Fatal(err)
	}
}

func TestNoReaderUsesATornTensor(t *testing.T) {
	const commits, readers = 300, 3
	m := newMount(t, "none")
	m.put(flatModel(t), "a.gguf")
	var all []*program
	for range readers {
		p := launch(t, reader(t), m.boot("models/a.gguf"), "--uniform", "--until", fmt.Sprint(commits+1), "a", "b")
		p.until("reading")
		all = append(all, p)
	}
	for i := range commits {
		commitFlat(t, m.boot("models/a.gguf"), float32(i+2))
	}
	m.expect("a.gguf", "generation", fmt.Sprint(commits+1))
	for _, p := range all {
		last := strings.Join(p.end(), "\n")
		if !strings.HasSuffix(last, " torn 0") || !strings.Contains(last, fmt.Sprintf(" last %d ", commits+1)) {
			t.Errorf("a reader says: %s", last)
		}
		t.Log(last)
	}
}

func TestReaderIsWokenByCommits(t *testing.T) {
	m := newMount(t, "none")
	m.put(flatModel(t), "a.gguf")
	p := launch(t, reader(t), m.boot("models/a.gguf"), "--uniform", "--count", "4", "a", "b")
	for i := range 4 {
		p.until(fmt.Sprintf("generation %d", i+1))
		if i < 3 {
			commitFlat(t, m.boot("models/a.gguf"), float32(i+2))
		}
	}
	p.end()
}

// evolution is the command line of the daemon.
func evolution(m *mount, args ...string) []string {
	return append([]string{examples + "/python/evolution_daemon.py", "--mount", m.dir, "--model", "base.gguf"}, args...)
}

var gain = regexp.MustCompile(`^best: .* fitness (-?[0-9.]+), ([+-][0-9.]+); `)

// improved checks the last line of the daemon.
func improved(t testing.TB, lines []string) {
	t.Helper()
	if len(lines) == 0 {
		t.Error("it said nothing")
		return
	}
	if g := gain.FindStringSubmatch(lines[len(lines)-1]); g == nil || number(t, g[2]) < 0.3 {
		t.Errorf("50 generations did not improve the fitness: %s", lines[len(lines)-1])
	}
}

func number(t testing.TB, s string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Error(err)
	}
	return v
}

func TestEvolution(t *testing.T) {
	py := python(t)
	m := newMount(t, "none")
	m.put(tinyModel, "base.gguf")
	var before []string
	var drawn []byte
	for run := range 2 {
		picture := filepath.Join(tempDir(t), "fitness.svg")
		lines := launch(t, py, evolution(m, "--seed", "7", "--svg", picture)...).end()
		improved(t, lines)
		svg := read(t, picture)
		checkSVG(t, svg)
		if run > 0 && (strings.Join(lines, "\n") != strings.Join(before, "\n") || !bytes.Equal(svg, drawn)) {
			t.Errorf("the same seed gave\n%s\nand then\n%s", strings.Join(before, "\n"), strings.Join(lines, "\n"))
		}
		before, drawn = lines, svg
	}
	if !strings.Contains(before[len(before)-2], " by numpy ") {
		t.Errorf("nobody was attached: %s", before[len(before)-2])
	}
}

// checkSVG checks that a drawing is XML and has its two curves.
func checkSVG(t testing.TB, svg []byte) {
	t.Helper()
	curves := 0
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the SVG is no XML: %v", err)
		}
		if s, ok := tok.(xml.StartElement); ok && s.Name.Local == "polyline" {
			curves++
		}
	}
	if curves != 2 {
		t.Errorf("%d curves, want 2", curves)
	}
}

// populated mounts, loads a population beforehand, and attaches a runtime to it all.
func populated(t *testing.T) (m *mount, runtime *program) {
	t.Helper()
	m = newMount(t, "none")
	m.put(tinyModel, "base.gguf")
	must(t, "mkdir", m.out("population"))
	for i := range 12 {
		m.put(tinyModel, fmt.Sprintf("population/%03d.gguf", i))
	}
	runtime = launch(t, rustExample(t, "vector_boot"), "session", m.boot("models/population"))
	for range 12 {
		runtime.until(": attached")
	}
	return m, runtime
}

func TestEvolutionAsksTheRuntime(t *testing.T) {
	m, _ := populated(t)
	lines := launch(t, python(t), evolution(m, "--timeout", "60")...).end()
	improved(t, lines)
	for _, line := range lines {
		if strings.HasPrefix(line, "generation ") && !strings.HasSuffix(line, " by runtime 9") {
			t.Errorf("the runtime was not asked: %s", line)
		}
	}
	// Both evaluate the same: what NumPy says of the base model, Rust does.
	alone := newMount(t, "none")
	alone.put(tinyModel, "base.gguf")
	own := launch(t, python(t), evolution(alone, "--generations", "1")...).end()
	if len(own) < 2 || len(lines) < 2 || own[0] != lines[0] || math.Abs(base(t, own[1])-base(t, lines[1])) > 1e-4 {
		t.Errorf("NumPy: %q, Rust: %q", own, lines[:2])
	}
}

func base(t testing.TB, line string) float64 {
	t.Helper()
	return number(t, strings.TrimPrefix(line, "base: fitness "))
}

func TestEvolutionSurvivesItsRuntime(t *testing.T) {
	m, runtime := populated(t)
	brain := launch(t, python(t), evolution(m, "--timeout", "60", "--step")...)
	for n := range 10 {
		brain.say("")
		brain.until(fmt.Sprintf("generation %d: ", n+1))
	}
	// It is killed while it is being asked.
	if err := runtime.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	until := m.events()
	brain.say("")
	until("interrupt")
	runtime.kill()
	if line := brain.until("generation 11: "); !strings.HasSuffix(line, " by numpy 9") {
		t.Errorf("the runtime is dead: %s", line)
	}
	for range 39 {
		brain.say("")
	}
	improved(t, brain.end())
	m.expect("population/000.gguf", "state", "loaded")
}

func TestEvolutionKeepsToThePolicy(t *testing.T) {
	m := newMount(t, "none")
	m.put(tinyModel, "base.gguf")
	must(t, "mkdir", m.out("population"))
	for i := range 12 {
		p := fmt.Sprintf("population/%03d.gguf", i)
		m.put(tinyModel, p)
		write(t, m.boot("models/"+p+"/policy"), []byte("reject_nan yes\nmax_change 0.05\n"))
	}
	lines := launch(t, python(t), evolution(m, "--generations", "5")...).end()
	if last := lines[len(lines)-1]; !strings.HasSuffix(last, " 0 refused") {
		t.Errorf("it did not keep within the policy: %s", last)
	}
	write(t, m.boot("models/population/005.gguf/policy"), []byte("forbid output.*\n"))
	lines = launch(t, python(t), evolution(m, "--generations", "5")...).end()
	if last := lines[len(lines)-1]; strings.HasSuffix(last, " 0 refused") || !strings.HasPrefix(last, "best: ") {
		t.Errorf("one member may not change: %s", last)
	}
}

func TestRustReadsWhatOthersRead(t *testing.T) {
	py := python(t)
	m := newMount(t, "none")
	m.put(tinyModel, "a.gguf")
	m.expect("a.gguf", "state", "loaded")
	program := rustExample(t, "vector_boot")
	for _, model := range []string{m.out("a.gguf"), m.boot("models/a.gguf"), m.boot("")} {
		if have := must(t, program, "layout", model); have != m.of("a.gguf", "layout.tsv") {
			t.Errorf("layout of %s:\n%s", model, have)
		}
	}
	if have := must(t, program, "stats", m.boot("")); !strings.Contains(have, "\nloads 1\n") {
		t.Errorf("stats: %s", have)
	}
	lines := strings.Split(strings.TrimSpace(must(t, rustExample(t, "examples/design"), m.out("a.gguf"))), "\n")
	want := strings.Split(strings.TrimSpace(must(t, py, "testdata/sums.py", tinyModel)), "\n")
	if len(lines) != len(want)+2 {
		t.Fatalf("design printed %d lines for %d tensors", len(lines), len(want))
	}
	for i, w := range want {
		have, sum := cutLast(lines[i+1])
		w, wantSum := cutLast(w)
		if have != w || math.Abs(number(t, sum)-number(t, wantSum)) > 1e-3 {
			t.Errorf("design says %q, gguf-py %q %s", lines[i+1], w, wantSum)
		}
	}
}

func cutLast(line string) (rest, last string) {
	i := strings.LastIndexByte(line, '\t')
	return line[:i+1], line[i+1:]
}

func TestInterruptsReachARuntime(t *testing.T) {
	m := newMount(t, "none")
	m.put(flatModel(t), "a.gguf")
	dir := m.boot("models/a.gguf")
	p := launch(t, rustExample(t, "vector_boot"), "session", dir)
	bell := launch(t, rustExample(t, "vector_boot"), "session", "--futex", dir)
	p.until("attached")
	bell.until("attached")
	for _, op := range []string{"0xff", "0x7"} {
		write(t, dir+"/ctl", []byte("interrupt "+op+" timeout=1m"))
		p.until("a.gguf: interrupt " + op)
		bell.until("a.gguf: interrupt " + op)
	}
	commitFlat(t, dir, 2)
	p.until("a.gguf: generation 2")
	bell.until("a.gguf: generation 2")
	m.put(flatModel(t), "a.gguf")
	p.until("a.gguf: generation 3")
	bell.until("a.gguf: generation 3")
}

func TestPingPong(t *testing.T) {
	m := newMount(t, "none")
	m.put(flatModel(t), "a.gguf")
	out := must(t, rustExample(t, "vector_boot"), "pingpong", m.boot("models/a.gguf"), "100")
	if lines := strings.Split(out, "\n"); len(lines) != 11 || !strings.HasPrefix(lines[9], "two\tfutex\t") {
		t.Errorf("it said:\n%s", out)
	}
	t.Log(out)
}

func TestKilledSessionIsNotWaitedFor(t *testing.T) {
	m := newMount(t, "none")
	m.put(flatModel(t), "a.gguf")
	dir := m.boot("models/a.gguf")
	p := launch(t, rustExample(t, "vector_boot"), "session", dir)
	p.until("attached")
	if err := p.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	until := m.events()
	answer := make(chan error)
	go func() { answer <- os.WriteFile(dir+"/ctl", []byte("interrupt 0xFF timeout=1h"), 0) }()
	until("interrupt")
	p.kill()
	if err := <-answer; err != nil {
		t.Errorf("interrupting a session that is killed: %v", err)
	}
	until("detach")
	if left, err := os.ReadDir(dir + "/sessions"); len(left) > 0 || err != nil {
		t.Errorf("sessions: %v %v", left, err)
	}
	write(t, dir+"/ctl", []byte("interrupt 0xFF timeout=1h"))
}

func TestKilledBrainLeavesAWholeModel(t *testing.T) {
	m := newMount(t, "none")
	m.put(flatModel(t), "a.gguf")
	dir := m.boot("models/a.gguf")
	p := launch(t, "python3", "testdata/half_draft.py", dir+"/drafts/dead", "a", "b")
	p.until("half")
	p.kill()
	m.holds("a.gguf", read(t, flatModel(t)))
	m.expect("a.gguf", "generation", "1")
	commitFlat(t, dir, 2) // another one is not hindered
	m.expect("a.gguf", "generation", "2")
	same(t, dir+"/tensors/a/data", uniform(1<<14, 2))
	same(t, dir+"/tensors/b/data", uniform(1<<18, 2))
	// What the dead one staged is older than that now.
	if err := os.WriteFile(dir+"/drafts/dead/ctl", []byte("commit"), 0); !errors.Is(err, unix.EBUSY) {
		t.Errorf("committing the draft of the dead: %v, want EBUSY", err)
	}
	must(t, "rmdir", dir+"/drafts/dead")
	same(t, dir+"/tensors/a/data", uniform(1<<14, 2))
}

// TestLlamaCppSeesACommit writes a tensor under a llama.cpp that has the model mapped.
func TestLlamaCppSeesACommit(t *testing.T) {
	m := newMount(t, "none")
	m.put(tinyModel, "a.gguf")
	llama := launch(t, python(t), "testdata/complete.py", m.boot("models/a.gguf/model.gguf"))
	llama.until("loaded")
	complete := func() string {
		llama.say("")
		return llama.until("completion ")
	}
	before := complete()
	for _, tensor := range []string{"token_embd.weight", "output_norm.weight", "blk.0.ffn_down.weight"} {
		values := m.boot("models/a.gguf/tensors/" + tensor + "/data")
		old := read(t, values)
		changed := bytes.Clone(old)
		half := len(old) / 2 // other words mean other rows
		copy(changed, old[half:])
		copy(changed[half:], old)
		if bytes.Equal(changed, old) {
			changed = uniform(len(old)/4, -1)
		}
		write(t, values, changed)
		after := complete()
		if after == before {
			t.Errorf("%s was changed, and llama.cpp still generates %s", tensor, before)
		}
		write(t, values, old)
		if have := complete(); have != before {
			t.Errorf("%s is as it was, and llama.cpp generates %s, before %s", tensor, have, before)
		}
		t.Logf("%s: %s, changed %s", tensor, before, after)
	}
	same(t, m.out("a.gguf"), read(t, tinyModel))
	llama.end()
}
