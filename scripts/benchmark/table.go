package main

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	"vbootfs/scripts/frame"
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
		ratio = frame.Number(l.ratio)
	}
	if l.goal > 0 {
		goal, verdict = frame.Number(l.goal), "met"
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
	return fmt.Sprintf("| %d | %s | %s | %s | %s | %s | %s |\n", l.group, frame.Cell(l.what), frame.Cell(value(l.ours, l.oursValue)),
		frame.Cell(value(l.theirs, l.theirsValue)), ratio, goal, frame.Cell(verdict))
}

func value(what, v string) string {
	if v == "" || what == "" {
		return what + v
	}
	return what + ": " + v
}

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
	load, _ := os.ReadFile("/proc/loadavg")
	load1, _, _ := strings.Cut(string(load), " ")
	return fmt.Sprintf("%s; large model %s, %d rounds; load when it began: %s.\n", frame.Machine(), frame.BytesText(b.size), b.rounds, load1)
}

func (b *bench) writeTable(page string) error {
	text := b.machine() + "\n" + tableHead
	for _, l := range b.lines {
		text += l.String()
	}
	return frame.WritePart(page, "<!-- scripts/bench --write: begin -->", "<!-- scripts/bench --write: end -->", text)
}

// text is the median of measurements and how far they spread.
func (p pair) text(all []float64) string {
	show := secondsText
	if p.bytes > 0 {
		show = func(s float64) string { return frame.Number(float64(p.bytes)/s/1e9) + " GB/s" }
	}
	if p.p99 {
		return fmt.Sprintf("%s (p99 %s)", show(median(all)), show(quantile(all, 0.99)))
	}
	lo, hi := slices.Min(all), slices.Max(all)
	if p.bytes > 0 {
		lo, hi = hi, lo
		return fmt.Sprintf("%s (%s–%s)", show(median(all)), frame.Number(float64(p.bytes)/lo/1e9), frame.Number(float64(p.bytes)/hi/1e9))
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
		return frame.Number(s*1e6) + " µs"
	case s < 1:
		return frame.Number(s*1e3) + " ms"
	}
	return frame.Number(s) + " s"
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
