package main

import (
	"fmt"
	"strings"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"vbootfs/fs"
	"vbootfs/vectorboot"
)

// option is one row of the table that feeds flags, -o, --help and the man page.
type option struct {
	name  string
	arg   string // name of the value, "" for a switch
	doc   string
	short string // one-letter flag
	set   func(c *config, value string) error
}

// config is what the command line asks for.
type config struct {
	fs.Options
	foreground bool
	logFile    string
	logLevel   string
}

func toggle(f func(*config)) func(*config, string) error {
	return func(c *config, _ string) error { f(c); return nil }
}

// flag sets or clears a mount(2) flag.
func flag(set, clear uintptr) func(*config, string) error {
	return toggle(func(c *config) { c.Flags = c.Flags&^clear | set })
}

// policyLine sets one guard, as a line of a model's policy file does. A colon
// separates globs, a comma being the end of the option.
func policyLine(key string) func(*config, string) error {
	return func(c *config, v string) error {
		line := key + " " + strings.ReplaceAll(v, ":", " ")
		p, err := vectorboot.ParsePolicy(c.Policy.String() + line)
		if err == nil {
			c.Policy = p
		}
		return err
	}
}

func ignored(*config, string) error { return nil }

var options = []option{
	{"size", "BYTES", "limit of shared memory, such as 8G, 512M or 50% (default: half of the memory)", "", setSize},
	{"segdir", "DIR", "where segments live (default: /run/vbootfs, or /dev/shm/vbootfs-UID without privilege)", "", func(c *config, v string) error { c.SegmentDir = v; return nil }},
	{"allow_other", "", "let other users use the mount; modes and owners are always checked", "", toggle(func(c *config) { c.AllowOther = true })},
	{"no_passthrough", "", "answer all reads in the daemon, even where the kernel could bypass it", "", toggle(func(c *config) { c.NoPass = true })},
	{"reject_nan", "", "refuse changes that bring NaN or infinities into a tensor", "", toggle(func(c *config) { c.Policy.RejectNaN = true })},
	{"max_change", "PART", "refuse changes of a value by more than PART of the tensor's largest magnitude", "", policyLine("max_change")},
	{"allow", "GLOB:GLOB", "tensors that may be changed (default: all)", "", policyLine("allow")},
	{"forbid", "GLOB:GLOB", "tensors that may not be changed", "", policyLine("forbid")},
	{"history", "BYTES", "keep so many bytes of old generations for rollback (default: a 16th of the limit)", "", setHistory},
	{"ro", "", "mount read-only", "", toggle(func(c *config) { c.ReadOnly = true })},
	{"foreground", "", "stay in the foreground", "f", toggle(func(c *config) { c.foreground = true })},
	{"log", "FILE", "append the log to FILE (default: standard error in the foreground, else none)", "", func(c *config, v string) error { c.logFile = v; return nil }},
	{"loglevel", "LEVEL", "error, warning, info or debug (default: warning)", "", func(c *config, v string) error { c.logLevel = v; return nil }},
}

// generic are the options of mount(8) that are understood in -o only.
var generic = []option{
	{"rw", "", "", "", toggle(func(c *config) { c.ReadOnly = false })},
	{"noexec", "", "", "", flag(unix.MS_NOEXEC, 0)}, {"exec", "", "", "", flag(0, unix.MS_NOEXEC)},
	{"noatime", "", "", "", flag(unix.MS_NOATIME, 0)}, {"atime", "", "", "", flag(0, unix.MS_NOATIME)},
	{"nodiratime", "", "", "", flag(unix.MS_NODIRATIME, 0)}, {"diratime", "", "", "", flag(0, unix.MS_NODIRATIME)},
	{"relatime", "", "", "", flag(unix.MS_RELATIME, 0)}, {"norelatime", "", "", "", flag(0, unix.MS_RELATIME)},
	{"strictatime", "", "", "", flag(unix.MS_STRICTATIME, 0)}, {"nostrictatime", "", "", "", flag(0, unix.MS_STRICTATIME)},
	{"sync", "", "", "", flag(unix.MS_SYNCHRONOUS, 0)}, {"async", "", "", "", flag(0, unix.MS_SYNCHRONOUS)},
	{"dirsync", "", "", "", flag(unix.MS_DIRSYNC, 0)},
	// What mount(8) always adds or passes on, and what is fixed here: devices and
	// set-user-ID programs are never honoured.
	{"dev", "", "", "", ignored}, {"nodev", "", "", "", ignored}, {"suid", "", "", "", ignored}, {"nosuid", "", "", "", ignored},
	{"defaults", "", "", "", ignored}, {"auto", "", "", "", ignored}, {"noauto", "", "", "", ignored},
	{"nofail", "", "", "", ignored}, {"_netdev", "", "", "", ignored},
	{"user", "", "", "", ignored}, {"nouser", "", "", "", ignored}, {"users", "", "", "", ignored}, {"owner", "", "", "", ignored}, {"group", "", "", "", ignored},
	{"default_permissions", "", "", "", ignored},
}

func find(name string) *option {
	for _, table := range [][]option{options, generic} {
		for i := range table {
			if table[i].name == name {
				return &table[i]
			}
		}
	}
	return nil
}

// apply reads a comma-separated -o list.
func (c *config) apply(list string) error {
	for _, item := range strings.Split(list, ",") {
		name, value, has := strings.Cut(item, "=")
		if name == "" || strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "X-") || strings.HasPrefix(name, "comment") {
			continue
		}
		o := find(name)
		if o == nil {
			return usagef("unknown option -o %s", name)
		}
		if has != (o.arg != "") {
			return usagef("option -o %s takes %s", name, orNone(o.arg))
		}
		if err := o.set(c, value); err != nil {
			return usagef("option -o %s: %v", item, err)
		}
	}
	return nil
}

func orNone(arg string) string {
	if arg == "" {
		return "no value"
	}
	return "a value: " + arg
}

func setSize(c *config, v string) error {
	if pct, ok := strings.CutSuffix(v, "%"); ok {
		var n float64
		if _, err := fmt.Sscanf(pct, "%g", &n); err != nil || n <= 0 || n > 100 {
			return fmt.Errorf("%q is not a percentage of the memory", v)
		}
		var si unix.Sysinfo_t
		if err := unix.Sysinfo(&si); err != nil {
			return err
		}
		c.Limit = int64(float64(si.Totalram) * float64(si.Unit) * n / 100)
		return nil
	}
	n, err := humanize.ParseBytes(binaryUnit(v))
	if err != nil || n == 0 || n > 1<<62 {
		return fmt.Errorf("%q is not a size", v)
	}
	c.Limit = int64(n)
	return nil
}

func setHistory(c *config, v string) error {
	n, err := humanize.ParseBytes(binaryUnit(v))
	if err != nil || n > 1<<62 {
		return fmt.Errorf("%q is not a size", v)
	}
	if c.History = int64(n); n == 0 {
		c.History = -1
	}
	return nil
}

// binaryUnit reads K, M, G and T as powers of 1024, as tmpfs does.
func binaryUnit(v string) string {
	if v != "" && strings.ContainsRune("kKmMgGtT", rune(v[len(v)-1])) {
		return v + "iB"
	}
	return v
}
