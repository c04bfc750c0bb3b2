package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// unprivileged is run by nobody, in a mount namespace where /dev/fuse may be
// opened by all. $1 is the program, $2 and $3 are models, $4 is a directory.
const unprivileged = `
set -eu
vbootfs=$1 a=$2 b=$3
cd "$4"
mkdir mnt source
out=mnt/geometry_os_v7/output boot=mnt/vector_boot
end() { kill -9 $(cat pid) 2>/dev/null || true; fusermount3 -uz mnt 2>/dev/null || true; }
trap end EXIT
start() { "$vbootfs" source mnt -o segdir="$PWD/segments",size=8M,log="$PWD/log"; pgrep -u 65534 -x vbootfs >pid; }
start
grep -q "passthrough off" $boot/status
cp "$a" $out/a.gguf
cmp "$a" $boot/models/a.gguf/model.gguf
cmp "$a" "$(sed -n 's/.*"segment":{"path":"\([^"]*\)".*/\1/p' $boot/layout.json)"
exec 3<$out/a.gguf
cp "$b" $out/a.gguf
cmp - "$a" <&3
exec 3<&-
cmp "$b" $out/a.gguf
[ "$(cat $boot/models/a.gguf/generation)" = 2 ]
! head -c 1000 "$a" >$out/bad.gguf
grep -q "^at byte" $boot/models/bad.gguf/error
! dd if=/dev/zero of=$out/big bs=1M count=9 2>dd.txt
grep -q "No space left" dd.txt
rm $out/big $out/bad.gguf
while [ "$(df --output=used mnt | tail -1)" -gt 5000 ]; do :; done # the kernel forgets a file a moment after unlink(2)
cp "$a" $out/c.gguf
t=$boot/models/c.gguf/tensors/output.weight/data
printf abcd | dd of=$t conv=notrunc status=none
[ "$(head -c 4 $t)" = abcd ]
[ "$(tail -c +$(($(cat ${t%data}offset) + 1)) $out/c.gguf | head -c 4)" = abcd ]
kill -9 $(cat pid)
start
cmp "$b" $out/a.gguf
[ "$(cat $boot/models/a.gguf/generation)" = 2 ]
fusermount3 -u mnt
while kill -0 $(cat pid) 2>/dev/null; do :; done
cmp "$b" source/a.gguf
[ -z "$(ls -A segments 2>/dev/null)" ]
! grep -E "level=error|panic" log
`

// namespaced is run by nobody as root of a user namespace of its own. $1 is the
// program, $2 and $3 are models, $4 is a directory.
const namespaced = `
set -eu
vbootfs=$1 a=$2 b=$3
cd "$4"
mkdir mnt source
cp "$a" source/cold.gguf
out=mnt/geometry_os_v7/output boot=mnt/vector_boot
start() {
	"$vbootfs" -f source mnt -o segdir="$PWD/segments",size=8M,log="$PWD/log" & pid=$!
	until grep -qs "state running" $boot/status; do kill -0 $pid; done
}
start
trap 'kill -9 $pid 2>/dev/null || true' EXIT
cmp "$a" $out/cold.gguf
cp "$a" $out/a.gguf
cp "$b" $out/a.gguf
cmp "$b" $boot/models/a.gguf/model.gguf
cmp "$b" "$(sed -n 's/.*"segment":{"path":"\([^"]*\)".*/\1/p' $boot/layout.json)"
! head -c 1000 "$a" >$out/bad.gguf
kill -9 $pid
wait $pid || true
start
[ "$(cat $boot/models/a.gguf/generation)" = 2 ]
[ -z "$(getfattr -m - -d $out/a.gguf)" ]
cmp "$b" $out/a.gguf
rm $out/cold.gguf
umount mnt
wait $pid
cmp "$b" source/a.gguf
[ ! -e source/cold.gguf ]
[ -z "$(ls -A segments 2>/dev/null)" ]
! grep -E "level=error|panic" log
`

func TestUserNamespace(t *testing.T) { asNobody(t, `unshare -Urm sh -c "$@"`, namespaced) }

func TestUnprivileged(t *testing.T) { asNobody(t, `sh -c "$@"`, unprivileged) }

// asNobody lets nobody run a script in a way that says what becomes of it.
func asNobody(t *testing.T, how, script string) {
	t.Helper()
	dir := tempDir(t)
	for _, d := range []string{scratch, dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(home, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	fuse := filepath.Join(dir, "fuse")
	if err := unix.Mknod(fuse, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(fuse, 0o666); err != nil {
		t.Fatal(err)
	}
	a, b := makeModel(t, "1M", 1), makeModel(t, "1M", 2)
	for _, name := range []string{a, b} {
		if err := os.Chmod(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	must(t, "unshare", "-m", "sh", "-c", `mount --bind "$1" /dev/fuse && shift && exec setpriv --reuid=65534 --regid=65534 --clear-groups `+how,
		"sh", fuse, script, "sh", binary, a, b, home)
}
