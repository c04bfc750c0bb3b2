package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// promises are sentences of docs/INTERFACE.md and scripts that end with 0 if
// they are true. A script begins in an empty output/; $A and $B are models
// outside of the mount, $BAD is the first half of $A, $ODD has a key with a slash, $BOOT is vector_boot.
var promises = []struct{ sentence, script string }{
	{"A file whose name ends in `.gguf` is loaded when it is closed after writing.",
		`exec 3>a.gguf; [ "$(cat $BOOT/models/a.gguf/state)" = receiving ]; cat "$A" >&3; exec 3>&-; loaded a.gguf`},
	{"A file that is renamed to `*.gguf` is loaded by the rename.", `cp "$A" x; mv x a.gguf; loaded a.gguf`},
	{"When `close()` or `rename()` has returned, `models/P/` is complete.",
		`cp "$A" a.gguf; cd $BOOT/models/a.gguf; cat generation sha256 layout.json layout.tsv metadata.json >/dev/null; cmp model.gguf "$A"`},
	{"Names that begin with a dot, and names that end in `.tmp`, `.part` or `.incomplete`, never load.",
		`for n in .a.gguf a.tmp a.gguf.tmp a.gguf.part a.gguf.incomplete; do cp "$A" $n; done; none`},
	{"Other names are plain files.", `cp "$A" a.bin; echo hello >a.txt; none; [ "$(cat a.txt)" = hello ]`},
	{"A symbolic link loads nothing.", `cp "$A" a; ln -s a a.gguf; none`},
	{"A hard link of a model is a model of its own.", `cp "$A" a.gguf; ln a.gguf b.gguf; loaded b.gguf; rm a.gguf; loaded b.gguf`},
	{"Writing through one of several hard links replaces only that name.",
		`cp "$A" a.gguf; ln a.gguf b.gguf; cp "$B" b.gguf; cmp a.gguf "$A"; cmp b.gguf "$B"`},
	{"An empty file is no model and no error.", `: >a.gguf; none`},

	{"A file that is not a whole valid GGUF makes `close()` fail with EBADMSG.", `refused cp "$BAD" a.gguf`},
	{"A rename to `*.gguf` of a file that is no model fails with EBADMSG, and nothing moves.",
		`cp "$BAD" x; refused mv x a.gguf; [ "$(ls)" = x ]`},
	{"A hard link to `*.gguf` of a file that is no model fails with EBADMSG, and no link is made.",
		`cp "$BAD" x; refused ln x a.gguf; [ "$(ls)" = x ]`},
	{"The reason is in `models/P/error` and in the attribute `user.vbootfs.error` of the file.",
		`refused cp "$BAD" a.gguf; [ "$(cat $BOOT/models/a.gguf/error)" = "$(getfattr --only-values -n user.vbootfs.error a.gguf)" ]`},
	{"The reason names the byte offset at which reading failed.", `refused cp "$BAD" a.gguf; grep -q "^at byte [0-9]*: " $BOOT/models/a.gguf/error`},
	{"The bytes that were refused stay in `output/`.", `refused cp "$BAD" a.gguf; cmp a.gguf "$BAD"`},
	{"More bytes can complete a file that was refused.",
		`refused cp "$BAD" a.gguf; tail -c +$(($(stat -c %s a.gguf) + 1)) "$A" >>a.gguf; loaded a.gguf; cmp a.gguf "$A"`},
	{"If a model was loaded under that name, it stays loaded, whole.", `cp "$A" a.gguf; refused cp "$BAD" a.gguf; loaded a.gguf; cmp a.gguf "$A"`},
	{"The refused bytes are then kept as `P.rejected`.", `cp "$A" a.gguf; refused cp "$BAD" a.gguf; cmp a.gguf.rejected "$BAD"`},
	{"`P.rejected` stays until it is removed or refused bytes replace it.",
		`cp "$A" a.gguf; refused cp "$BAD" a.gguf; cp "$B" a.gguf; cmp a.gguf.rejected "$BAD"; refused cp /etc/hostname a.gguf; cmp a.gguf.rejected /etc/hostname`},
	{"`models/P` appears for a name that failed, until that name is written, renamed or removed.",
		`cp "$BAD" x; refused mv x a.gguf; [ "$(cat $BOOT/models/a.gguf/state)" = failed ]; cp "$A" a.gguf; loaded a.gguf
		refused cp "$BAD" b.gguf; rm b.gguf; refused cp "$BAD" c.gguf; mv c.gguf c; [ "$(ls $BOOT/models)" = a.gguf ]`},

	{"A model that is replaced by `cp` or by a rename gets the next generation.",
		`cp "$A" a.gguf; cp "$B" a.gguf; generation 2; cp "$A" x; mv x a.gguf; generation 3; cmp a.gguf "$A"`},
	{"Readers that have a model open or mapped keep its bytes when it is replaced, removed or renamed.",
		`cp "$A" a.gguf; exec 3<a.gguf 4<a.gguf 5<$BOOT/models/a.gguf/model.gguf; cp "$B" a.gguf; cmp - "$A" <&3; mv a.gguf b.gguf; cmp - "$A" <&4; rm b.gguf; cmp - "$A" <&5`},
	{"Opening a model for writing without truncating it gives the writer a private copy.",
		`cp "$A" a.gguf; python3 -c '
import os, subprocess, sys
with open("a.gguf", "r+b", buffering=0) as f:
    f.write(b"no")
    subprocess.run(["cmp", "a.gguf", os.environ["A"]], check=True)
    f.seek(0)
    f.write(b"GG")'; cmp a.gguf "$A"; generation 2`},
	{"The private copy becomes the next generation when the writer closes it.",
		`cp "$A" a.gguf; echo more >>a.gguf; generation 2; [ "$(tail -c 5 a.gguf)" = more ]`},
	{"An empty file written over a loaded model changes nothing.", `cp "$A" a.gguf; : >a.gguf; generation 1; cmp a.gguf "$A"`},
	{"`touch` and `chmod` keep the generation.", `cp "$A" a.gguf; touch a.gguf; chmod 600 a.gguf; generation 1`},
	{"A copy made by `cp` inside the mount is a model of its own, of one generation even while the original is being changed.",
		`cp "$A" a.gguf; python3 -c '
import os, subprocess, threading
model = os.environ["BOOT"] + "/models/"
size = int(open(model + "a.gguf/tensors/output.weight/nbytes").read())
def change(n):
    with open(model + "a.gguf/tensors/output.weight/data", "wb") as f:
        f.write(bytes([n]) * size)
change(0)
writer = threading.Thread(target=lambda: [change(n) for n in range(100)])
writer.start()
while writer.is_alive():
    subprocess.run(["cp", "a.gguf", "b.gguf"], check=True)
    assert len(set(open(model + "b.gguf/tensors/output.weight/data", "rb").read())) == 1
writer.join()'`},
	{"A fork that takes no time and no memory is a hard link: `ln a.gguf b.gguf`, or `cp -l`.",
		`cp "$A" a.gguf; cp -l a.gguf b.gguf; [ $(stat -c %i a.gguf) = $(stat -c %i b.gguf) ]; loaded b.gguf; cmp b.gguf "$A"`},
	{"Both names share the memory until one of them is changed or written; that one then gets a segment of its own, and the other keeps its bytes and its generation.",
		`cp "$A" a.gguf; ln a.gguf b.gguf; echo "set x uint8 1" >$BOOT/models/b.gguf/ctl; cmp a.gguf "$A"; generation 1; rm b.gguf; ln a.gguf b.gguf; echo more >>b.gguf; cmp a.gguf "$A"; generation 1
		rm b.gguf; ln a.gguf b.gguf; cp "$B" b.gguf; cmp a.gguf "$A"; generation 1`},
	{"Removing a file unloads its model.", `cp "$A" a.gguf; rm a.gguf; none`},
	{"A model that was removed begins again at generation 1.", `cp "$A" a.gguf; cp "$B" a.gguf; rm a.gguf; cp "$A" a.gguf; generation 1`},
	{"Renaming a model to another `*.gguf` keeps it loaded, with its generation.",
		`cp "$A" x.gguf; cp "$B" x.gguf; mv x.gguf a.gguf; generation 2; [ "$(ls $BOOT/models)" = a.gguf ]`},
	{"Renaming a model to a name that does not load unloads it.", `cp "$A" a.gguf; mv a.gguf a.bin; none; cmp a.bin "$A"`},

	{"`truncate(2)` by path of a loaded model fails with ETXTBSY.",
		`cp "$A" a.gguf; fails "Text file busy" python3 -c 'import os; os.truncate("a.gguf", 9)'; cmp a.gguf "$A"`},
	{"POSIX access control lists are refused with ENOTSUP.", `echo hello >a; fails "Operation not supported" python3 -c '
import os, struct
entries = [(1, 6, -1), (2, 4, 1), (4, 4, -1), (16, 4, -1), (32, 4, -1)]
os.setxattr("a", "system.posix_acl_access", struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *e) for e in entries))'`},
	{"Device nodes can be made but not opened, as on any `nodev` mount.", `mknod null c 1 3; fails "Permission denied" cat null`},

	{"A change takes effect when the writer closes the file, whole or not at all.",
		`cp "$A" a.gguf; t=$BOOT/models/a.gguf/tensors/output.weight; cp $t/data old; python3 -c '
import subprocess, sys
with open(sys.argv[1], "r+b", buffering=0) as f:
    f.write(b"abcd")
    subprocess.run(["cmp", sys.argv[1], "old"], check=True)' $t/data; [ "$(head -c 4 $t/data)" = abcd ]; generation 2`},
	{"A tensor that was written in part keeps the rest.",
		`cp "$A" a.gguf; t=$BOOT/models/a.gguf/tensors/output.weight; tail -c +5 $t/data >old; printf abcd | dd of=$t/data conv=notrunc status=none; tail -c +5 $t/data | cmp - old`},
	{"Data of a wrong size is refused with EINVAL at close, and nothing changes.",
		`cp "$A" a.gguf; fails "Invalid argument" cp /etc/hostname $BOOT/models/a.gguf/tensors/output.weight/data; cmp a.gguf "$A"; generation 1`},
	{"A tensor is changed in place: whoever has the model mapped sees the new bytes, and the generation counts up by one.",
		`cp "$A" a.gguf; t=$BOOT/models/a.gguf/tensors; cp $t/output.weight/data new; printf abcd | dd of=new conv=notrunc status=none
		exec 3<a.gguf; cp new $t/output.weight/data; tail -c +$(($(cat $t/output.weight/offset) + 1)) <&3 | head -c 4 | grep -q abcd; generation 2`},
	{"A key that is written keeps its type, and a value of another type is refused with EINVAL.",
		`cp "$A" a.gguf; k=$BOOT/models/a.gguf/metadata/llama.block_count; type=$(getfattr --only-values -n user.gguf.type $k); echo 9 >$k
		[ "$(cat $k)" = 9 ]; [ "$(getfattr --only-values -n user.gguf.type $k)" = $type ]; fails "Invalid argument" cp /etc/hostname $k; [ "$(cat $k)" = 9 ]`},
	{"`set KEY TYPE VALUE` in `ctl` sets or adds a key, and `unset KEY` removes one.",
		`cp "$A" a.gguf; cd $BOOT/models/a.gguf; echo "set x.y string hello there" >ctl; [ "$(cat metadata/x.y)" = "hello there" ]; echo "unset x.y" >ctl; [ ! -e metadata/x.y ]`},
	{"A change of keys makes a new segment; who has the old one mapped keeps it.",
		`cp "$A" a.gguf; exec 3<a.gguf; echo "set x uint8 1" >$BOOT/models/a.gguf/ctl; cmp - "$A" <&3; ! cmp -s a.gguf "$A"`},
	{"Nothing of a draft shows in the model before `echo commit >drafts/D/ctl`, which applies all or nothing.",
		`cp "$A" a.gguf; cd $BOOT/models/a.gguf; mkdir drafts/d; cp tensors/output.weight/data /tmp/$$; printf abcd | dd of=drafts/d/tensors/output.weight/data conv=notrunc status=none
		echo "set x uint8 1" >drafts/d/ctl; cmp tensors/output.weight/data /tmp/$$; rm /tmp/$$; echo commit >drafts/d/ctl; [ "$(head -c 4 tensors/output.weight/data)" = abcd ]; [ "$(cat metadata/x)" = 1 ]; generation 2`},
	{"If something that a draft changes was changed by another commit since it was staged, the commit fails with EBUSY.",
		`cp "$A" a.gguf; cd $BOOT/models/a.gguf; mkdir drafts/d; t=tensors/output.weight/data; printf abcd | dd of=drafts/d/$t conv=notrunc status=none; printf xyz | dd of=$t conv=notrunc status=none
		fails "busy" sh -c "exec env echo commit >drafts/d/ctl"; rmdir drafts/d`},
	{"A change that the policy refuses fails with EPERM, and the event `refused` says which tensor, which value and where.",
		`cp "$A" a.gguf; cd $BOOT/models/a.gguf; echo "reject_nan yes" >policy; head -c $(cat tensors/output_norm.weight/nbytes) /dev/zero | tr '\0' '\377' >/tmp/$$
		fails "not permitted" cp /tmp/$$ tensors/output_norm.weight/data; rm /tmp/$$; grep refused $BOOT/events.log | grep -q 'output_norm.weight.*NaN at element 0'`},

	{"`rollback N` in `ctl` makes the content of generation N the next generation.",
		`cp "$A" a.gguf; cd $BOOT/models/a.gguf; printf abcd | dd of=tensors/output.weight/data conv=notrunc status=none; echo "set x uint8 1" >ctl; cp "$B" $OLDPWD/a.gguf
		for n in 1 2 3; do cmp -s model.gguf "$A" && exit 1; echo "rollback 1" >ctl; cmp model.gguf "$A"; echo "rollback $((n + 1))" >ctl; done; echo "rollback 4" >ctl; cmp model.gguf "$B"; generation 11
		exec 3<>ctl; ! printf "rollback 99" >&3 2>/dev/null; cat <&3 | grep -q "99 is not kept"; grep '"rollback"' $BOOT/events.log | tail -1 | grep -q '"to":4'`},
	{"**history** is a table of the generations that can be brought back, oldest first, and the current one: generation, time, change and bytes kept, separated by tabs, after a header line.",
		`cp "$A" a.gguf; cd $BOOT/models/a.gguf; printf abcd | dd of=tensors/output.weight/data conv=notrunc status=none; echo "rollback 1" >ctl
		[ "$(cut -f1,3 history)" = "$(printf 'generation\tchange\n1\tload\n2\ttensors/output.weight\n3\trollback 1')" ]; [ "$(sed -n 2p history | cut -f4)" = "$(cat tensors/output.weight/nbytes)" ]`},
	{"Evicting or removing a model forgets its history, and so does the end of the daemon, also by a kill.",
		`cp "$A" a.gguf; cp "$B" a.gguf; rm a.gguf; cp "$A" a.gguf; [ "$(wc -l <$BOOT/models/a.gguf/history)" = 2 ]`},
	{"Without a SOURCE `publish` fails with ENOTSUP.", `cp "$A" a.gguf; fails "not supported" sh -c "exec env echo publish >$BOOT/models/a.gguf/ctl"`},
	{"So does a change of a model whose file has another name: the other name keeps the bytes.",
		`cp "$A" a.gguf; ln a.gguf b.gguf; ln a.gguf copy; printf abcd | dd of=$BOOT/models/b.gguf/tensors/output.weight/data conv=notrunc status=none
		cmp a.gguf "$A"; cmp copy "$A"; ! cmp -s b.gguf "$A"; generation 1; printf abcd | dd of=$BOOT/models/a.gguf/tensors/output.weight/data conv=notrunc status=none; cmp a.gguf b.gguf; cmp copy "$A"`},
	{"A model that was replaced since has changed in everything.",
		`cp "$A" a.gguf; cd $BOOT/models/a.gguf; mkdir drafts/d; printf abcd | dd of=drafts/d/tensors/output.weight/data conv=notrunc status=none; cp "$A" $OLDPWD/a.gguf
		fails "busy" sh -c "exec env echo commit >drafts/d/ctl"; rmdir drafts/d; cmp model.gguf "$A"`},
	{"A draft follows its model when that is renamed, and never changes another one that has got the name.",
		`cp "$A" a.gguf; o=$PWD; cd $BOOT/models/a.gguf; mkdir drafts/d; printf abcd | dd of=drafts/d/tensors/output.weight/data conv=notrunc status=none; exec 3>drafts/d/ctl
		mv $o/a.gguf $o/b.gguf; cp "$A" $o/a.gguf; printf commit >&3; cmp $o/a.gguf "$A"; ! cmp -s $o/b.gguf "$A"`},

	{"Looking changes nothing.", `cp "$A" a.gguf; cp $BOOT/events.log before; find $BOOT -type f -exec cat {} + >/dev/null; ls -lR $BOOT >/dev/null; cmp before $BOOT/events.log`},
	{"Sizes are exact, so `cp`, `tar` and `rsync` work.",
		`cp "$A" a.gguf; cd $BOOT/models; for f in $(find a.gguf -type f); do [ $(stat -c %s $f) = $(cat $f | wc -c) ]; done`},
	{"**events.log** is one JSON object a line, and grows.",
		`cp "$A" a.gguf; rm a.gguf; tail -2 $BOOT/events.log | python3 -c '
import json, sys
load, unload = map(json.loads, sys.stdin)
assert load["event"] == "load" and unload["event"] == "unload" and unload["seq"] == load["seq"] + 1'`},
	{"A command that is not understood fails with EINVAL.", `fails "Invalid argument" dd if=/etc/hostname of=$BOOT/ctl conv=notrunc status=none`},
	{"After a command failed, reading the same open file gives the reason.",
		`exec 3<>$BOOT/ctl; ! printf bogus >&3 2>/dev/null; cat <&3 | grep -q unknown`},
	{"**active** is a symbolic link to the model loaded last, or to the one chosen with `activate`.",
		`cp "$A" a.gguf; cp "$B" b.gguf; [ $(readlink $BOOT/active) = models/b.gguf ]; echo activate a.gguf >$BOOT/ctl; [ $(readlink $BOOT/active) = models/a.gguf ]; cmp $BOOT/layout.json $BOOT/models/a.gguf/layout.json; echo activate >$BOOT/ctl`},
	{"**sha256** is the hash of the whole file, as sha256sum prints it, computed when it is read.",
		`cp "$A" a.gguf; [ "$(cat $BOOT/models/a.gguf/sha256)" = "$(sha256sum <"$A" | cut -d" " -f1)" ]`},
	{"**metadata/KEY** is a file per key: a string is its exact bytes, a number or bool is a line, an array is JSON and a newline.",
		`cp "$A" a.gguf; cd $BOOT/models/a.gguf/metadata; [ "$(cat general.architecture; echo .)" = llama. ]; [ "$(getfattr --only-values -n user.gguf.type general.architecture)" = string ]
		python3 -c '
import json, os
for k, v in json.load(open("../metadata.json")).items():
    text = open(k).read()
    assert text == v["value"] or json.loads(text) == v["value"] and text[-1] == "\n", k'`},
	{"**tensors/NAME/** is a directory per tensor.", `cp "$A" a.gguf; cd $BOOT/models/a.gguf; [ "$(ls tensors | wc -l)" = $(($(wc -l <layout.tsv) - 1)) ]
		cd tensors/output_norm.weight; tail -c +$(($(cat offset) + 1)) "$A" | head -c $(cat nbytes) | cmp - data; grep -qF "$(cat info.json)" ../../layout.json`},
	{"In file names, a byte that a name cannot hold (`/`, NUL, what is not UTF-8) is `%` and two hexadecimal digits.",
		`cp "$ODD" a.gguf; ls $BOOT/models/a.gguf/metadata | grep -q %2F`},
	{"The segment path can be opened and mapped without FUSE.", `cp "$A" a.gguf; cmp "$(segment)" "$A"`},
	{"It always leads to the current generation: read `generation` again after opening it.", `cp "$A" a.gguf; s=$(segment); cp "$B" a.gguf; cmp "$s" "$B"`},
	{"A file that is open there keeps its bytes, as everywhere.", `cp "$A" a.gguf; exec 3<"$(segment)"; cp "$B" a.gguf; cmp - "$A" <&3`},
	{"With root, the directory of segments is mounted read-only.", `cp "$A" a.gguf; fails "Read-only file system" touch "$(segment)"`},
}

// vocabulary is what the scripts are written with.
const vocabulary = `
loaded() { [ "$(cat "$BOOT/models/$1/state")" = loaded ]; }
generation() { [ "$(cat "$BOOT/models/a.gguf/generation")" = "$1" ]; }
none() { [ -z "$(ls "$BOOT/models")" ]; }
fails() { want=$1; shift; ! said=$("$@" 2>&1) && case $said in *"$want"*) ;; *) echo "$said"; false ;; esac; }
refused() { fails "Bad message" "$@"; }
segment() { sed -n 's/.*"segment":{"path":"\([^"]*\)".*/\1/p' "$BOOT/models/a.gguf/layout.json"; }
`

// quote says which sentences of docs/INTERFACE.md a test is about.
func quote(t testing.TB, sentences ...string) {
	t.Helper()
	page := strings.Join(strings.Fields(string(read(t, "../../docs/INTERFACE.md"))), " ")
	for _, s := range sentences {
		if !strings.Contains(page, s) {
			t.Errorf("docs/INTERFACE.md does not say: %s", s)
		}
	}
}

func TestInterface(t *testing.T) {
	a, b, bad := makeModel(t, "2M", 1), makeModel(t, "3M", 2), tempDir(t)+"/bad"
	if err := os.WriteFile(bad, read(t, a)[:1<<20], 0o644); err != nil {
		t.Fatal(err)
	}
	odd, err := filepath.Abs("../../ggufview/testdata/malformed/odd_slash_key.gguf")
	if err != nil {
		t.Fatal(err)
	}
	m := newMount(t, "none")
	for _, p := range promises {
		t.Run(p.sentence, func(t *testing.T) {
			quote(t, p.sentence)
			cmd := exec.Command("bash", "-e", "-c", vocabulary+p.script)
			cmd.Dir = m.out("")
			cmd.Env = append(os.Environ(), "LC_ALL=C", "A="+a, "B="+b, "BAD="+bad, "ODD="+odd, "BOOT="+m.boot(""))
			if out, code := output(t, cmd); code != 0 {
				t.Errorf("exit code %d: %s", code, out)
			}
			must(t, "sh", "-c", `: >"$0"/a.gguf; find "$0" -mindepth 1 -delete`, m.out(""))
			if left := must(t, "ls", m.boot("models")); left != "" {
				t.Errorf("models left: %s", left)
			}
		})
	}
}
