package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"vbootfs/ggufview"
	"vbootfs/vectorboot"
)

// Version is the program's version; the linker sets it.
var Version = "devel"

func showVersion(At) ([]byte, error) { return []byte("vbootfs " + Version + "\n"), nil }

// showReadme lists the table.
func showReadme(At) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("The models that are loaded, as files.\nWrite NAME.gguf to ../geometry_os_v7/output/ and models/NAME.gguf/ is here.\n\n")
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	listRows(w, "", root.Rows[1].Rows)
	listRows(w, "  ", modelRow.Rows)
	listRows(w, "    ", tensorRow.Rows)
	err := w.Flush()
	return b.Bytes(), err
}

// listRows writes a line for each row that has a Doc; those before it that have
// none share the line.
func listRows(w io.Writer, indent string, rows []*Row) {
	var names []string
	for _, r := range rows {
		name := r.Name
		if r.IsDir() {
			name += "/"
		}
		if names = append(names, name); r.Doc != "" {
			fmt.Fprintf(w, "%s%s\t%s\n", indent, strings.Join(names, " "), r.Doc)
			names = nil
		}
	}
}

// padded fills a text of numbers that grow with spaces before its last newline,
// so that its size is seldom another one when it is read than when it was looked
// at: tar complains about files that change.
func padded(show func(At) ([]byte, error)) func(At) ([]byte, error) {
	const step = 256
	return func(at At) ([]byte, error) {
		b, err := show(at)
		if err != nil || len(b) == 0 {
			return b, err
		}
		b = append(b[:len(b)-1], bytes.Repeat([]byte(" "), step-len(b)%step)...)
		return append(b, '\n'), nil
	}
}

func showStatus(at At) ([]byte, error) {
	rt := at.RT
	used, limit := rt.Store().Usage()
	files, pending := rt.Pending()
	source := "none"
	if s := rt.Source(); s != nil {
		source = s.Path
	}
	var b bytes.Buffer
	for _, kv := range []struct {
		k string
		v any
	}{
		{"state", "running"}, {"source", source}, {"models", len(rt.Paths())},
		{"resident_bytes", used}, {"limit_bytes", limit}, {"sessions", rt.AttachedSessions()},
		{"passthrough", rt.Passthrough()}, {"pending_files", files}, {"pending_bytes", pending},
		{"uptime_seconds", int64(rt.Uptime().Seconds())},
	} {
		fmt.Fprintln(&b, kv.k, kv.v)
	}
	return b.Bytes(), nil
}

func showStats(at At) ([]byte, error) {
	var b bytes.Buffer
	for i, m := range vectorboot.Metrics {
		sep := ",\n"
		if i == 0 {
			sep = "{\n"
		}
		fmt.Fprintf(&b, "%s  %q: %s", sep, m.Name, strconv.FormatFloat(m.Value(at.RT), 'f', -1, 64))
	}
	b.WriteString("\n}\n")
	return b.Bytes(), nil
}

// showMetrics gathers the same table through the Prometheus client.
func showMetrics(at At) ([]byte, error) {
	reg := prometheus.NewRegistry()
	for _, m := range vectorboot.Metrics {
		value := func() float64 { return m.Value(at.RT) }
		var c prometheus.Collector
		if m.Gauge {
			c = prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "vbootfs", Name: m.Name, Help: m.Help}, value)
		} else {
			c = prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "vbootfs", Name: m.Name + "_total", Help: m.Help}, value)
		}
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	families, err := reg.Gather()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

func dataEvents(at At) (ggufview.View, error) { return at.RT.Events, nil }

// linkActive is where active points; while nothing is loaded it dangles.
func linkActive(at At) (string, error) { return path.Join("models", at.RT.Active()), nil }

// info is the model's record; it is gone when the model went away meanwhile.
func (at At) info() (vectorboot.Info, error) {
	i, ok := at.RT.Info(at.Path)
	if !ok {
		return i, fs.ErrNotExist
	}
	return i, nil
}

func showState(at At) ([]byte, error) {
	i, err := at.info()
	return []byte(string(i.State) + "\n"), err
}

func showError(at At) ([]byte, error) {
	i, err := at.info()
	if i.Error == "" {
		return []byte{}, err
	}
	return []byte(i.Error + "\n"), err
}

func showProgress(at At) ([]byte, error) {
	i, err := at.info()
	percent := 0.0
	if i.Want > 0 {
		percent = min(100, math.Floor(1000*float64(i.Bytes)/float64(i.Want))/10) // 100 only when all is there
	}
	return fmt.Appendf(nil, "bytes %d\ntotal_bytes %d\npercent %.1f\n", i.Bytes, i.Want, percent), err
}

func showGeneration(at At) ([]byte, error) {
	return fmt.Appendln(nil, at.Gen.N), nil
}

// Usage and execution of commands: one table each for the runtime and a model.

type command struct {
	name, args, doc string
	run             doer
}

// doer runs a command, and calls done, once, when it is known how it ended: at once,
// or later without a goroutine that waits for it.
type doer = func(ctx context.Context, at At, args string, done func(error))

var errUsage = errors.New("unknown command; read this file for the list")

func usage(cmds []command) []byte {
	var b bytes.Buffer
	for _, c := range cmds {
		fmt.Fprintf(&b, "%-24s %s\n", strings.TrimSpace(c.name+" "+c.args), c.doc)
	}
	return b.Bytes()
}

// run executes one line. ErrInvalid marks what the user got wrong.
func run(cmds []command) doer {
	return func(ctx context.Context, at At, line string, done func(error)) {
		line = strings.TrimSpace(line)
		name, args, _ := strings.Cut(line, " ")
		args = strings.TrimSpace(args)
		for _, c := range cmds {
			if c.name != name {
				continue
			}
			if (c.args == "") != (args == "") && !strings.HasPrefix(c.args, "[") {
				done(fmt.Errorf("usage: %s %s: %w", c.name, c.args, fs.ErrInvalid))
				return
			}
			c.run(ctx, at, args, func(err error) {
				if err != nil {
					err = fmt.Errorf("%s: %w", quotable(line), err)
				}
				done(err)
			})
			return
		}
		done(fmt.Errorf("%q: %w: %w", quotable(line), errUsage, fs.ErrInvalid))
	}
}

// quotable is what an error repeats of a command.
func quotable(line string) string {
	const enough = 200
	if line = strings.TrimSpace(line); len(line) > enough {
		line = line[:enough] + "..."
	}
	return line
}

// on makes a command of a function that takes no context.
func on(f func(At, string) error) doer {
	return func(_ context.Context, at At, args string, done func(error)) { done(f(at, args)) }
}

// during makes a command of a function that its caller can interrupt.
func during(f func(context.Context, At, string) error) doer {
	return func(ctx context.Context, at At, args string, done func(error)) { done(f(ctx, at, args)) }
}

var runtimeCommands = []command{
	{"activate", "[MODEL]", "make MODEL the active one; without it, the newest load", on(func(at At, p string) error { return at.RT.Activate(p) })},
	{"load", "MODEL", "bring a cold model into memory", during(func(ctx context.Context, at At, p string) error { return at.RT.Load(ctx, p) })},
	{"evict", "MODEL", "free its memory; SOURCE keeps it", on(func(at At, p string) error { return at.RT.Evict(p) })},
	{"sync", "", "wait until SOURCE has everything", during(func(ctx context.Context, at At, _ string) error { return at.RT.Sync(ctx) })},
}

var modelCommands = []command{
	{"activate", "", "make this the active model", on(func(at At, _ string) error { return at.RT.Activate(at.Path) })},
	{"load", "", "bring the model into memory if it is cold", during(func(ctx context.Context, at At, _ string) error { return at.RT.Load(ctx, at.Path) })},
	{"evict", "", "free its memory; SOURCE keeps it", on(func(at At, _ string) error { return at.RT.Evict(at.Path) })},
	{"pin", "", "do not let it be evicted", on(func(at At, _ string) error { return at.RT.Pin(at.Path, true) })},
	{"unpin", "", "let it be evicted again", on(func(at At, _ string) error { return at.RT.Pin(at.Path, false) })},
	{"interrupt", "OPCODE [timeout=2s]", "wake every session; with a timeout wait for all acknowledgements", interrupt},
	{"rollback", "N", "make the content of generation N the next generation; history lists them", on(rollback)},
	{"publish", "", "return when SOURCE has the model", on(func(at At, _ string) error { return at.RT.Persist(at.Path) })},
	{"set", "KEY TYPE VALUE", "set or add a metadata key", on(setKey)},
	{"unset", "KEY", "remove a metadata key", on(unsetKey)},
}

var draftCommands = []command{
	{"commit", "", "apply everything that is staged, or nothing", on(func(at At, _ string) error { return at.Draft.Commit(at.Path) })},
	{"abort", "", "forget everything that is staged", on(func(at At, _ string) error { return at.Draft.Clear() })},
	{"set", "KEY TYPE VALUE", "stage a metadata key", on(setKey)},
	{"unset", "KEY", "stage the removal of a metadata key", on(unsetKey)},
}

func showUsage(At) ([]byte, error)      { return usage(runtimeCommands), nil }
func showModelUsage(At) ([]byte, error) { return usage(modelCommands), nil }
func showDraftUsage(At) ([]byte, error) { return usage(draftCommands), nil }

var (
	doRuntime = run(runtimeCommands)
	doModel   = run(modelCommands)
	doDraft   = run(draftCommands)
)
