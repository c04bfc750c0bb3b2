package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const security = "docs/SECURITY.md"

// guarded are promises about users, and scripts that end with 0 if they hold. A
// script runs as root in an empty output/ that all users may write; `as U command`
// is another user, $A is a model, $BOOT is vector_boot, $SEG the segments.
var guarded = []struct{ sentence, script string }{
	{"A user who may not read a file of `output/` reads nothing of it in `vector_boot/`.",
		`cp "$A" a.gguf; chmod 600 a.gguf; cd $BOOT/models/a.gguf
		for f in model.gguf layout.json metadata.json sha256 summary.txt report.html model.safetensors state error generation readers policy control wait session ctl; do denied as 1001 cat $f; done
		for d in . tensors metadata drafts sessions tensors/output.weight; do denied as 1001 ls $d; done
		denied as 1001 cat tensors/output.weight/data; denied as 1001 cat metadata/general.architecture; denied as 1001 getfattr -n user.gguf.type tensors/output.weight
		cat model.gguf tensors/output.weight/data metadata/general.architecture >/dev/null`},
	{"A user who may not read a file of `output/` does not read its segment either.",
		`cp "$A" a.gguf; s="$(sed -n 's/.*"segment":{"path":"\([^"]*\)".*/\1/p' $BOOT/models/a.gguf/layout.json)"
		as 1001 cmp "$s" "$A"; chmod 600 a.gguf; denied as 1001 cat "$s"
		as 1001 cp "$A" b.gguf; as 1001 chmod 640 b.gguf; [ "$(stat -c '%u %g %a' "$SEG"/*/live/b.gguf)" = "1001 1001 640" ]; denied as 1002 cat "$SEG"/*/live/b.gguf
		mkdir -m 700 d; cp "$A" d/c.gguf; denied as 1001 cat "$SEG"/*/live/d/c.gguf`},
	{"A change of the mode holds at once for everything that shows the file.",
		`cp "$A" a.gguf; m=$BOOT/models/a.gguf; for i in 1 2 3; do
		chmod 644 a.gguf; as 1001 cmp a.gguf "$A"; as 1001 cmp $m/model.gguf "$A"; as 1001 cat $m/tensors/output.weight/data $m/layout.json >/dev/null
		chmod 600 a.gguf; denied as 1001 cat a.gguf; denied as 1001 cat $m/model.gguf; denied as 1001 cat $m/tensors/output.weight/data; denied as 1001 cat $m/layout.json; done
		chmod 644 a.gguf; as 1001 cat $m/state >/dev/null; chown 1001 a.gguf; as 1001 sh -c "echo pin >$m/ctl"; chown 0 a.gguf; denied as 1001 sh -c "echo pin >$m/ctl"`},
	{"A user who may only read a file changes neither it nor its model: no tensor, key, draft, policy, command or name.",
		`mkdir d; cp "$A" d/a.gguf; m=$BOOT/models/d/a.gguf
		for f in d/a.gguf $m/tensors/output.weight/data $m/tensors/output.weight/f32 $m/metadata/general.name $m/metadata/general.architecture $m/policy $m/ctl $m/session $m/control; do
		[ ! -e $f ] || denied as 1001 sh -c 'echo pin >"$1"' sh $f; done
		denied as 1001 mkdir $m/drafts/x; denied as 1001 rm d/a.gguf; denied as 1001 mv d/a.gguf d/b.gguf; denied as 1001 ln d/a.gguf d/b.gguf; denied as 1001 touch d/x
		denied as 1001 chmod 666 d/a.gguf; denied as 1001 setfattr -n user.x -v y d/a.gguf
		mkdir $m/drafts/x; denied as 1001 sh -c "echo commit >$m/drafts/x/ctl"; denied as 1001 sh -c "echo x >$m/drafts/x/tensors/output.weight/data"; denied as 1001 rmdir $m/drafts/x
		cmp d/a.gguf "$A"; [ "$(cat $m/generation)" = 1 ]`},
	{"`vector_boot/ctl` takes commands from the daemon's user only.",
		`as 1001 cp "$A" a.gguf; denied as 1001 sh -c "echo activate a.gguf >$BOOT/ctl"; as 1001 cat $BOOT/ctl >/dev/null; denied chmod 666 $BOOT/ctl; echo activate a.gguf >$BOOT/ctl
		as 1001 sh -c "echo pin >$BOOT/models/a.gguf/ctl"; denied as 1002 sh -c "echo pin >$BOOT/models/a.gguf/ctl"`},
	{"Who may commit a draft is decided by the mode and owner of its `ctl`.",
		`as 1001 cp "$A" a.gguf; as 1001 chmod 666 a.gguf; m=$BOOT/models/a.gguf; as 1001 mkdir $m/drafts/d; as 1002 sh -c "echo 'set x uint8 1' >$m/drafts/d/ctl"
		as 1001 chmod 600 $m/drafts/d/ctl; denied as 1002 sh -c "echo commit >$m/drafts/d/ctl"; as 1001 sh -c "echo commit >$m/drafts/d/ctl"; [ "$(cat $m/metadata/x)" = 1 ]
		denied as 1002 chmod 666 $m/drafts/d/ctl; chown 1002 $m/drafts/d/ctl; denied as 1001 sh -c "echo abort >$m/drafts/d/ctl"; as 1002 sh -c "echo abort >$m/drafts/d/ctl"`},
	{"Set-user-ID bits and devices in the mount have no effect.",
		`cp /usr/bin/id id; chmod 4755 id; [ "$(as 1001 ./id -u)" = 1001 ]; mknod zero c 1 5; chmod 666 zero; denied cat zero; denied as 1001 cat zero
		findmnt -no OPTIONS -T . | grep -q nosuid; findmnt -no OPTIONS -T . | grep -q nodev`},
	{"Bytes of one user never show in the new file of another.",
		`cp "$A" a.gguf; rm a.gguf; as 1001 sh -c 'truncate -s 4M hole; fallocate -l 4M room'; for f in hole room; do cmp -n 4194304 $f /dev/zero; done`},
	{"Files that are not shown yet and notes of the daemon are for its user only.",
		`for d in stage control notes; do denied as 1001 ls "$SEG"/*/$d; [ "$(stat -c '%U %a' "$SEG"/*/$d)" = "root 700" ]; done`},
	{"The daemon of root writes to segments through a mount that nobody else has; the one that others see is read-only.",
		`as 1001 cp "$A" a.gguf; denied as 1001 sh -c 'echo x >"$1"' sh "$SEG"/*/live/a.gguf; denied sh -c 'echo x >"$1"' sh "$SEG"/*/live/a.gguf
		denied touch "$SEG"/*/live/a.gguf; denied rm "$SEG"/*/live/a.gguf; cmp a.gguf "$A"`},
}

const guards = `
set -eu
as() { u=$1; shift; setpriv --reuid=$u --regid=$u --clear-groups "$@"; }
denied() { ! said=$("$@" 2>&1) || { echo "allowed: $*"; return 1; }; case $said in *ermission\ denied*|*not\ permitted*|*Read-only*) ;; *) echo "$*: $said"; return 1 ;; esac; }
`

// open lets all users reach a mount.
func (m *mount) open() {
	m.t.Helper()
	for _, d := range []string{scratch, m.private} {
		if err := os.Chmod(d, 0o755); err != nil {
			m.t.Fatal(err)
		}
	}
}

func TestUsersAmongEachOther(t *testing.T) {
	a := makeModel(t, "1M", 1)
	if err := os.Chmod(filepath.Dir(a), 0o755); err != nil {
		t.Fatal(err)
	}
	m := newMount(t, tempDir(t), "allow_other")
	m.open()
	for _, g := range guarded {
		t.Run(g.sentence, func(t *testing.T) {
			promise(t, security, g.sentence)
			if err := os.Chmod(m.out(""), 0o777); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("bash", "-c", guards+g.script)
			cmd.Dir = m.out("")
			cmd.Env = append(os.Environ(), "LC_ALL=C", "A="+a, "BOOT="+m.boot(""), "SEG="+m.segs)
			if out, code := output(t, cmd); code != 0 {
				t.Errorf("exit code %d: %s", code, out)
			}
			must(t, "find", m.out(""), "-mindepth", "1", "-delete")
		})
	}
}

func TestOthersAreKeptOut(t *testing.T) {
	promise(t, security, "Without `allow_other` nobody but the daemon's user enters the mount.")
	m := newMount(t, "none")
	m.open()
	for _, p := range []string{m.dir, m.out(""), m.boot("status")} {
		if out, code := output(t, exec.Command("setpriv", "--reuid=1001", "--regid=1001", "--clear-groups", "ls", p)); code == 0 {
			t.Errorf("another user sees %s", out)
		}
	}
}

// TestPlantedSegmentDirectories starts the daemon where somebody else was first.
func TestPlantedSegmentDirectories(t *testing.T) {
	promise(t, security, "A link, or a directory that others can write, in the place of the segment directory is refused.")
	elsewhere := tempDir(t)
	tests := map[string]func(segs string) error{
		"a link":                         func(p string) error { return os.Symlink(elsewhere, p) },
		"a directory that all can write": func(p string) error { return unixErr(os.Mkdir(p, 0o777), os.Chmod(p, 0o777)) },
		"another user's directory":       func(p string) error { return unixErr(os.Mkdir(p, 0o755), os.Chown(p, 1001, 1001)) },
		"a FIFO":                         func(p string) error { return unix.Mkfifo(p, 0o644) },
		"a link inside": func(p string) error {
			return unixErr(os.Mkdir(p, 0o755), os.Symlink(elsewhere, p+"/"+memID(t, p)))
		},
		"a lock that is a link": func(p string) error {
			return unixErr(os.Mkdir(p, 0o755), os.Symlink(elsewhere+"/victim", p+"/"+memID(t, p)+".lock"))
		},
	}
	for what, plant := range tests {
		t.Run(what, func(t *testing.T) {
			m := unmounted(t)
			if err := plant(m.segs); err != nil {
				t.Fatal(err)
			}
			m.refusedStart("none", m.segs)
			if left, err := os.ReadDir(elsewhere); len(left) > 0 || err != nil {
				t.Errorf("the link was followed: %v %v", left, err)
			}
			if err := os.RemoveAll(m.segs); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func unixErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// memID is the name of the store that a mount beside this segment directory has.
func memID(t *testing.T, segs string) string {
	t.Helper()
	m := &mount{t: t, private: tempDir(t), proc: -1, dir: filepath.Join(filepath.Dir(segs), "mnt")}
	m.segs = filepath.Join(m.private, "segments")
	m.start("none")
	defer m.end()
	ents, err := os.ReadDir(m.segs)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ents {
		if e.IsDir() {
			return e.Name()
		}
	}
	t.Fatal("no store")
	return ""
}

func TestPlantedWorkDirectory(t *testing.T) {
	promise(t, security, "A directory `.vbootfs` in SOURCE that others can write is refused.")
	source := tempDir(t)
	m := unmounted(t)
	work := filepath.Join(source, ".vbootfs")
	if err := os.Symlink(tempDir(t), work); err != nil {
		t.Fatal(err)
	}
	m.refusedStart(source, ".vbootfs is not a directory of our own")
	if err := unixErr(os.Remove(work), os.Mkdir(work, 0o777), os.Chmod(work, 0o777)); err != nil {
		t.Fatal(err)
	}
	m.refusedStart(source, ".vbootfs is not a directory of our own")
	if err := unixErr(os.Chmod(work, 0o700), os.Chown(work, 1001, 1001)); err != nil {
		t.Fatal(err)
	}
	m.refusedStart(source, ".vbootfs is not a directory of our own")
}

// TestNoSocket looks at what the daemon has open.
func TestNoSocket(t *testing.T) {
	promise(t, security, "The daemon opens no socket and inherits no descriptor but standard input and output.")
	m := newMount(t, tempDir(t))
	m.put(makeModel(t, "1M", 1), "a.gguf")
	for _, target := range m.descriptors() {
		if strings.HasPrefix(target, "socket:") {
			t.Errorf("the daemon has %s", target)
		}
	}
}

// descriptors are what the daemon has open.
func (m *mount) descriptors() (targets []string) {
	m.t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", m.pid)
	ents, err := os.ReadDir(dir)
	if err != nil || len(ents) == 0 {
		m.t.Fatalf("no descriptors: %v", err)
	}
	for _, e := range ents {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			targets = append(targets, target)
		}
	}
	return targets
}
