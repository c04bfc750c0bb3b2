package main

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// line is a row of the table.
type line struct {
	group                  int
	what                   string
	ours, theirs           string // what was run
	oursValue, theirsValue string
	ratio                  float64
	goal                   float64
	note                   string
}

const tableHead = `| | row | vbootfs | peer | times as fast | goal | |
|---|---|---|---|---|---|---|
`

func (l line) String() string {
	verdict, ratio, goal := "", "", ""
	if l.ratio > 0 {
		ratio = number(l.ratio)
	}
	if l.goal > 0 {
		goal, verdict = number(l.goal), "met"
		if l.ratio < l.goal {
			verdict = "**missed**"
		}
		if l.ratio == 0 {
			verdict = ""
		}
	}
	if l.note != "" {
		verdict = strings.TrimPrefix(verdict+"; "+l.note, "; ")
	}
	return fmt.Sprintf("| %d | %s | %s | %s | %s | %s | %s |\n", l.group, cell(l.what), cell(value(l.ours, l.oursValue)),
		cell(value(l.theirs, l.theirsValue)), ratio, goal, cell(verdict))
}

func value(what, v string) string {
	if v == "" || what == "" {
		return what + v
	}
	return what + ": " + v
}

func cell(s string) string { return strings.ReplaceAll(s, "|", "\\|") }

func (b *bench) printHead() {
	fmt.Print(b.machine(), "\n", tableHead)
}

func (b *bench) add(l line) {
	l.group = b.group.number
	b.lines = append(b.lines, l)
	fmt.Print(l)
}

// machine says what was measured where.
func (b *bench) machine() string {
	var u unix.Utsname
	_ = unix.Uname(&u) // empty then
	load, _ := os.ReadFile("/proc/loadavg")
	load1, _, _ := strings.Cut(string(load), " ")
	return fmt.Sprintf("%s, %d CPUs (%s), %s of memory, %s; large model %s, %d rounds; load when it began: %s.\n",
		"Linux "+unix.ByteSliceToString(u.Release[:]), runtime.NumCPU(), cpuName(), bytesText(meminfo("MemTotal")), runtime.Version(),
		bytesText(b.size), b.rounds, load1)
}

func cpuName() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for l := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return runtime.GOARCH
}

// The table stands between these lines; all else in the page is written by hand.
const (
	tableBegin = "<!-- scripts/bench --write: begin -->\n"
	tableEnd   = "<!-- scripts/bench --write: end -->\n"
)

func (b *bench) writeTable(name string) error {
	page, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(page, []byte(tableBegin))
	_, after, ok2 := bytes.Cut(rest, []byte(tableEnd))
	if !ok || !ok2 {
		return fmt.Errorf("%s: the lines %q and %q are not there", name, tableBegin, tableEnd)
	}
	var out bytes.Buffer
	out.Write(before)
	out.WriteString(tableBegin + b.machine() + "\n" + tableHead)
	for _, l := range b.lines {
		out.WriteString(l.String())
	}
	out.WriteString(tableEnd)
	out.Write(after)
	return os.WriteFile(name, out.Bytes(), 0o644)
}

// text is the median of measurements and how far they spread.
func (p pair) text(all []float64) string {
	show := secondsText
	if p.bytes > 0 {
		show = func(s float64) string { return number(float64(p.bytes)/s/1e9) + " GB/s" }
	}
	if p.p99 {
		return fmt.Sprintf("%s (p99 %s)", show(median(all)), show(quantile(all, 0.99)))
	}
	lo, hi := slices.Min(all), slices.Max(all)
	if p.bytes > 0 {
		lo, hi = hi, lo
		return fmt.Sprintf("%s (%s–%s)", show(median(all)), number(float64(p.bytes)/lo/1e9), number(float64(p.bytes)/hi/1e9))
	}
	return fmt.Sprintf("%s (%s–%s)", show(median(all)), show(lo), show(hi))
}

func median(all []float64) float64 { return quantile(all, 0.5) }

// quantile is one of the values; between two for the median of an even number.
func quantile(all []float64, q float64) float64 {
	if len(all) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(all))
	at := q * float64(len(s)-1)
	i := int(at)
	if q == 0.5 && i+1 < len(s) {
		return s[i] + (s[i+1]-s[i])*(at-float64(i))
	}
	return s[min(int(math.Ceil(at)), len(s)-1)]
}

func secondsText(s float64) string {
	switch {
	case s < 1e-3:
		return number(s*1e6) + " µs"
	case s < 1:
		return number(s*1e3) + " ms"
	}
	return number(s) + " s"
}

// number shows three digits.
func number(x float64) string {
	switch {
	case x >= 100:
		return fmt.Sprintf("%.0f", x)
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

// thousands writes 10000 as 10,000.
func thousands(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}

func bytesText(n int64) string {
	switch {
	case n >= 1<<30:
		return number(float64(n)/(1<<30)) + " GiB"
	case n >= 1<<20:
		return number(float64(n)/(1<<20)) + " MiB"
	}
	return number(float64(n)/(1<<10)) + " KiB"
}

// exponent fits t = c·n^e.
func exponent(n, t []float64) float64 {
	var sx, sy, sxx, sxy float64
	for i := range n {
		x, y := math.Log(n[i]), math.Log(t[i])
		sx, sy, sxx, sxy = sx+x, sy+y, sxx+x*x, sxy+x*y
	}
	k := float64(len(n))
	return (k*sxy - sx*sy) / (k*sxx - sx*sx)
}
