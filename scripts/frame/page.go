package frame

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// WritePart replaces what stands in a page between two lines, which stay. All
// else in the page is written by hand.
func WritePart(page, begin, end, text string) error {
	b, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(b, []byte(begin+"\n"))
	_, after, ok2 := bytes.Cut(rest, []byte(end+"\n"))
	if !ok || !ok2 {
		return fmt.Errorf("%s: the lines %q and %q are not there", page, begin, end)
	}
	out := fmt.Appendf(nil, "%s%s\n%s%s\n%s", before, begin, text, end, after)
	return os.WriteFile(page, out, 0o644)
}

// Cell is a text in a table of Markdown.
func Cell(s string) string { return strings.ReplaceAll(s, "|", "\\|") }

// Machine says on what a program runs.
func Machine() string {
	var u unix.Utsname
	_ = unix.Uname(&u) // empty then
	return fmt.Sprintf("Linux %s, %d CPUs (%s), %s of memory, %s", unix.ByteSliceToString(u.Release[:]), runtime.NumCPU(), cpuName(),
		BytesText(Meminfo("MemTotal")), runtime.Version())
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

// Meminfo is a line of /proc/meminfo in bytes.
func Meminfo(key string) int64 { return kilobytes("/proc/meminfo", key) }

// kilobytes is a line "KEY: N kB" of a file, in bytes; 0 when there is none.
func kilobytes(file, key string) int64 {
	text, _ := os.ReadFile(file)
	for l := range strings.Lines(string(text)) {
		if f := strings.Fields(l); len(f) > 1 && f[0] == key+":" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n << 10
		}
	}
	return 0
}

// Number shows three digits.
func Number(x float64) string {
	switch {
	case x >= 100:
		return fmt.Sprintf("%.0f", x)
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

// Thousands writes 10000 as 10,000.
func Thousands(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%s,%03d", Thousands(n/1000), n%1000)
}

// BytesText writes bytes as KiB, MiB or GiB.
func BytesText(n int64) string {
	switch {
	case n >= 1<<30:
		return Number(float64(n)/(1<<30)) + " GiB"
	case n >= 1<<20:
		return Number(float64(n)/(1<<20)) + " MiB"
	}
	return Number(float64(n)/(1<<10)) + " KiB"
}
