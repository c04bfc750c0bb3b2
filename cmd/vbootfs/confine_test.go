package main

import (
	"fmt"
	"strings"
	"testing"
)

// statusOf is a field of /proc/PID/status.
func statusOf(t *testing.T, pid int, field string) string {
	t.Helper()
	_, rest, ok := strings.Cut(string(read(t, fmt.Sprintf("/proc/%d/status", pid))), "\n"+field+":\t")
	if !ok {
		t.Fatalf("no %s", field)
	}
	value, _, _ := strings.Cut(rest, "\n")
	return value
}

func TestTheDaemonGivesUpWhatItDoesNotNeed(t *testing.T) {
	promise(t, security, "A daemon of root has the capabilities SYS_ADMIN, DAC_OVERRIDE, FOWNER, CHOWN, FSETID, MKNOD and SETFCAP, and can gain no others.")
	m := unmounted(t)
	script := `exec 7</etc/passwd; exec "$0" none "$1" -o "$2"`
	must(t, "sh", "-c", script, binary, m.dir, "segdir="+m.segs+",log="+m.logFile())
	m.adopt()
	want := fmt.Sprintf("%016x", mask(needed))
	for _, field := range []string{"CapPrm", "CapEff", "CapBnd"} {
		if have := statusOf(t, m.pid, field); have != want {
			t.Errorf("%s is %s, want %s", field, have, want)
		}
	}
	if have := statusOf(t, m.pid, "CapInh"); strings.Trim(have, "0") != "" {
		t.Errorf("CapInh is %s", have)
	}
	if have := statusOf(t, m.pid, "NoNewPrivs"); have != "1" {
		t.Errorf("NoNewPrivs is %s", have)
	}
	if have := statusOf(t, m.pid, "Umask"); have != "0000" {
		t.Errorf("Umask is %s", have)
	}
	for _, target := range m.descriptors() {
		if target == "/etc/passwd" {
			t.Error("the daemon kept a descriptor of whoever started it")
		}
	}
}

// TestWhatRootMayDoWorksConfined needs each capability that is kept.
func TestWhatRootMayDoWorksConfined(t *testing.T) {
	m := newMount(t, tempDir(t), "allow_other")
	script := `set -eu; cd "$1"
echo hello >f; chown 1234:2345 f; chmod 0600 f; [ "$(cat f)" = hello ]; chmod 02775 f; [ "$(stat -c %a f)" = 2775 ]
touch -d @5 f; [ "$(stat -c %Y f)" = 5 ]; mknod null c 1 3; setfattr -n trusted.x -v y f
cp /bin/true t; setcap cap_net_raw+ep t; getcap t | grep -q cap_net_raw
mkdir -m 0700 d; chown 1234 d; echo x >d/f; [ "$(cat d/f)" = x ]; setfattr -n user.x -v y d/f`
	must(t, "sh", "-c", script, "sh", m.out(""))
	write(t, m.boot("ctl"), []byte("sync"))
}
