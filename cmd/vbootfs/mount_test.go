package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// install links the program where mount(8) looks for it, until the test ends.
// It does nothing to a program that is installed.
func install(t testing.TB, name string) {
	t.Helper()
	if _, err := os.Lstat(name); err == nil {
		t.Fatalf("%s is installed; these tests try their own", name)
	}
	if err := os.Symlink(binary, name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(name) })
}

// viaMount are ways to mount with mount(8): DIR, SEGS and FSTAB are replaced.
var viaMount = []struct {
	name string
	args []string
}{
	{"fuse.vbootfs", []string{"-t", "fuse.vbootfs", "none", "DIR", "-o", "size=64M,segdir=SEGS"}},
	{"vbootfs", []string{"-t", "vbootfs", "none", "DIR", "-o", "size=64M,segdir=SEGS"}},
	{"generic options", []string{"-t", "vbootfs", "-o", "size=64M,noatime,noexec,nosuid,nodev,segdir=SEGS", "none", "DIR"}},
	{"fstab", []string{"-T", "FSTAB", "DIR"}},
	{"fstab by SOURCE", []string{"-T", "FSTAB", "-a", "-t", "vbootfs"}},
}

func TestMount8(t *testing.T) {
	quote(t,
		"`findmnt` shows the type `fuse.vbootfs` and SOURCE.",
		"`df` shows the memory used and its limit.")
	install(t, "/sbin/mount.vbootfs")
	install(t, "/usr/local/bin/vbootfs")
	from := makeModel(t, "2M", 1)
	for _, v := range viaMount {
		t.Run(v.name, func(t *testing.T) {
			m := unmounted(t)
			fstab := filepath.Join(m.private, "fstab")
			line := fmt.Sprintf("none %s vbootfs size=64M,nofail,x-systemd.automount,segdir=%s 0 0\n", m.dir, m.segs)
			if err := os.WriteFile(fstab, []byte(line), 0o644); err != nil {
				t.Fatal(err)
			}
			replace := strings.NewReplacer("DIR", m.dir, "SEGS", m.segs, "FSTAB", fstab)
			var args []string
			for _, a := range v.args {
				args = append(args, replace.Replace(a))
			}
			if out, code := m.run("mount", args...); code != 0 {
				t.Fatalf("mount %v: exit code %d: %s", args, code, out)
			}
			m.adopt()
			m.put(from, "a.gguf")
			m.holds("a.gguf", read(t, from))
			if have := must(t, "findmnt", "-n", "-o", "FSTYPE,SOURCE", m.dir); strings.Join(strings.Fields(have), " ") != "fuse.vbootfs none" {
				t.Errorf("findmnt: %s", have)
			}
			m.checkStatfs(64 << 20)
		})
	}
}

// checkStatfs compares df with the status file.
func (m *mount) checkStatfs(limit int64) {
	m.t.Helper()
	var size, used int64
	out := must(m.t, "df", "-B1", "--output=size,used", m.dir)
	if _, err := fmt.Sscan(strings.SplitN(out, "\n", 2)[1], &size, &used); err != nil {
		m.t.Fatalf("df: %s", out)
	}
	status := string(read(m.t, m.boot("status")))
	for _, want := range []string{fmt.Sprintf("limit_bytes %d\n", size), fmt.Sprintf("resident_bytes %d\n", used)} {
		if !strings.Contains(status, want) {
			m.t.Errorf("df says %q, status %q", out, status)
		}
	}
	if size != limit || used == 0 {
		m.t.Errorf("df says %q, want a size of %d", out, limit)
	}
}

// exits are command lines that fail. DIR is a mountpoint that is free, USED one that is not.
var exits = []struct {
	args []string
	code int
	says string
}{
	{[]string{}, 1, "SOURCE and MOUNTPOINT"},
	{[]string{"none"}, 1, "SOURCE and MOUNTPOINT"},
	{[]string{"none", "DIR", "more"}, 1, "SOURCE and MOUNTPOINT"},
	{[]string{"--bogus", "none", "DIR"}, 1, "unknown flag"},
	{[]string{"none", "DIR", "-o", "bogus"}, 1, "unknown option -o bogus"},
	{[]string{"none", "DIR", "-o", "size"}, 1, "takes a value"},
	{[]string{"none", "DIR", "-o", "size=much"}, 1, "not a size"},
	{[]string{"none", "DIR", "-o", "size=0"}, 1, "not a size"},
	{[]string{"none", "DIR", "-o", "size=101%"}, 1, "not a percentage"},
	{[]string{"none", "DIR", "-o", "ro=1"}, 1, "takes no value"},
	{[]string{"none", "DIR/missing"}, 32, "no such file or directory"},
	{[]string{"/etc/hostname/none", "DIR"}, 32, "not a directory"},
	{[]string{"/missing", "DIR"}, 32, "no such file or directory"},
	{[]string{"/proc/version", "DIR"}, 32, "not a directory"},
	{[]string{"none", "USED"}, 32, "already mounted"},
	{[]string{"-f", "none", "USED"}, 32, "already mounted"},
	{[]string{"gen-model"}, 1, "accepts 1 arg"},
	{[]string{"gen-model", "--size", "much", "DIR/x"}, 1, "--size"},
	{[]string{"gen-model", "DIR/missing/x"}, 2, "no such file or directory"},
}

func TestExitCodes(t *testing.T) {
	quote(t, "Exit codes are those of mount(8): 1 usage, 2 system, 32 mount failed.")
	free, used := unmounted(t), newMount(t, "none")
	replace := strings.NewReplacer("DIR", free.dir, "USED", used.dir)
	for _, e := range exits {
		var args []string
		for _, a := range e.args {
			args = append(args, replace.Replace(a))
		}
		out, code := free.run(binary, args...)
		if code != e.code || !strings.Contains(out, e.says) || strings.Count(out, "\n") != 1 {
			t.Errorf("%v: exit code %d, want %d: %s", e.args, code, e.code, out)
		}
	}
}

func TestTheSameSourceTwice(t *testing.T) {
	source := tempDir(t)
	m, other := newMount(t, source), unmounted(t)
	out, code := other.run(binary, source, other.dir, "-o", "segdir="+m.segs)
	if code != 32 || !strings.Contains(out, "in use") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

func TestStaleMountIsReplaced(t *testing.T) {
	quote(t,
		"A directory that shows a living vbootfs is refused; the mount of a daemon that died is replaced.",
		"After the daemon was killed, the next mount of the same SOURCE finds the loaded models in memory.",
		"For SOURCE `none` it is the next mount on the same directory.")
	from := makeModel(t, "2M", 1)
	m := newMount(t, "none")
	m.put(from, "a.gguf")
	m.put(from, "a.gguf")
	check := holdAll(t, m, "a.gguf")
	m.kill()
	if err := unix.Statfs(m.dir, &unix.Statfs_t{}); err != unix.ENOTCONN {
		t.Errorf("without its daemon the mount gives %v", err)
	}
	m.start("none")
	m.holds("a.gguf", read(t, from))
	m.expect("a.gguf", "generation", "2")
	check(read(t, from))
}

// unmounts are ways to end a mount; each ends the daemon. $0 is the mountpoint, $1 the daemon.
var unmounts = []struct{ name, script string }{
	{"umount", `umount "$0"`},
	{"fusermount3", `fusermount3 -u "$0"`},
	{"SIGTERM", `kill -TERM "$1"`},
	{"SIGINT", `kill -INT "$1"`},
}

func TestUnmount(t *testing.T) {
	from := makeModel(t, "2M", 1)
	for _, u := range unmounts {
		t.Run(u.name, func(t *testing.T) {
			m := newMount(t, "none")
			m.put(from, "a.gguf")
			must(t, "sh", "-c", u.script, m.dir, fmt.Sprint(m.pid))
			m.wait()
			if left, _ := os.ReadDir(m.dir); len(left) > 0 {
				t.Errorf("%s still shows %v", m.dir, left)
			}
		})
	}
}

func TestSignalDetachesABusyMount(t *testing.T) {
	quote(t,
		"`umount` and `fusermount3 -u` fail while the mount is in use.",
		"SIGINT and SIGTERM detach the mount even when it is in use.",
		"What was mapped from a segment stays readable after the daemon ended.")
	from := makeModel(t, "2M", 1)
	m := newMount(t, "none")
	m.put(from, "a.gguf")
	check := holdAll(t, m, "a.gguf")
	for _, umount := range [][]string{{"umount", m.dir}, {"fusermount3", "-u", m.dir}} {
		if out, code := m.run(umount[0], umount[1:]...); code == 0 || !strings.Contains(out, "busy") {
			t.Errorf("%v: exit code %d: %s", umount, code, out)
		}
	}
	must(t, "kill", "-TERM", fmt.Sprint(m.pid))
	m.wait()
	check(read(t, from))
}

func TestSourceSurvivesUnmount(t *testing.T) {
	from, source := makeModel(t, "2M", 1), tempDir(t)
	m := newMount(t, source)
	must(t, "mkdir", m.out("d"))
	m.put(from, "d/a.gguf")
	must(t, "sh", "-c", `echo hello >"$0"`, m.out("note.txt"))
	m.stop()
	same(t, filepath.Join(source, "d/a.gguf"), read(t, from))
	same(t, filepath.Join(source, "note.txt"), []byte("hello\n"))
	m.start(source)
	same(t, m.out("d/a.gguf"), read(t, from))
	m.holds("d/a.gguf", read(t, from))
}

func TestReadOnly(t *testing.T) {
	from, source := makeModel(t, "1M", 1), tempDir(t)
	must(t, "cp", from, filepath.Join(source, "a.gguf"))
	m := newMount(t, source, "ro")
	if out, code := m.run("cp", from, m.out("b.gguf")); code == 0 || !strings.Contains(out, "Read-only file system") {
		t.Errorf("exit code %d: %s", code, out)
	}
	same(t, m.out("a.gguf"), read(t, from))
}

func TestSizeLimit(t *testing.T) {
	quote(t, "A writer beyond the memory limit gets ENOSPC, and other models stay whole.")
	small, large := makeModel(t, "30M", 1), makeModel(t, "60M", 2)
	m := newMount(t, "none", "size=64M")
	m.put(small, "a.gguf")
	out, code := m.run("cp", large, m.out("b.gguf"))
	if code == 0 || !strings.Contains(out, "No space left on device") {
		t.Errorf("exit code %d: %s", code, out)
	}
	m.holds("a.gguf", read(t, small))
	m.expect("b.gguf", "state", "failed")
	if out, code = m.run("cp", large, m.out("a.gguf")); code == 0 || !strings.Contains(out, "No space left on device") {
		t.Errorf("a replacement: exit code %d: %s", code, out)
	}
	m.holds("a.gguf", read(t, small))
	must(t, "sh", "-c", `rm -f "$0"/b.gguf "$0"/*.rejected`, m.out(""))
	m.put(small, "c.gguf")
	m.holds("c.gguf", read(t, small))
	m.checkStatfs(64 << 20)
}

func TestWithoutPassthrough(t *testing.T) {
	from, other := makeModel(t, "2M", 1), makeModel(t, "3M", 2)
	m := newMount(t, "none", "no_passthrough")
	if status := string(read(t, m.boot("status"))); !strings.Contains(status, "passthrough off\n") {
		t.Errorf("status: %s", status)
	}
	m.put(from, "a.gguf")
	check := holdAll(t, m, "a.gguf")
	m.put(other, "a.gguf")
	m.holds("a.gguf", read(t, other))
	check(read(t, from))
}
