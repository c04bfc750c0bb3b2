package main

import (
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// breaks are what TestCheckFinds does to a copy of a mount, and what has to be said then.
var breaks = []broken{
	{do: rewrite("mnt/vector_boot/status", "state stopped\n"), want: "status says"},
	{do: rewrite("mnt/vector_boot/models/a.gguf/state", "strange\n"), want: `the state is "strange"`},
	{do: rewrite("mnt/vector_boot/models/bad.gguf/error", ""), want: "does not say why"},
	{do: rewrite("mnt/vector_boot/models/a.gguf/generation", "7\n"), want: "generation 7, layout.json says 2"},
	{do: rewrite("mnt/vector_boot/models/a.gguf/layout.json", "{"), want: "layout.json: not readable"},
	{do: swap("mnt/vector_boot/models/a.gguf/layout.json", `"model":"a.gguf"`, `"model":"b.gguf"`), want: `of model "b.gguf"`},
	{do: swap("mnt/vector_boot/models/a.gguf/layout.json", `"offset":`, `"offset":1`), want: "layout.json: not the tensors of the file"},
	{do: swap("mnt/vector_boot/models/a.gguf/layout.json", `"file_bytes":`, `"file_bytes":1`), want: "layout.json says"},
	{do: swap("mnt/vector_boot/models/a.gguf/layout.json", "/live/a.gguf", "/live/b.gguf"), want: "is not that of the model"},
	{do: swap("mnt/vector_boot/models/a.gguf/layout.tsv", "F32", "F16"), want: "layout.tsv: not the tensors"},
	{do: rewrite("mnt/vector_boot/models/a.gguf/sha256", strings.Repeat("0", 64)+"\n"), want: "not the hash"},
	{do: func(f *fake) { f.flip("mnt/vector_boot/models/a.gguf/model.gguf") }, want: "not the bytes of model.gguf"},
	{do: rewrite("mnt/vector_boot/models/a.gguf/model.gguf", "GGUF"), want: "not a valid GGUF"},
	{do: remove("mnt/vector_boot/models/a.gguf/model.gguf"), want: "no such file"},
	{do: func(f *fake) { f.flip("mnt/vector_boot/models/a.gguf/tensors/output.weight/data") }, want: "output.weight/data: not the bytes"},
	{do: remove("mnt/vector_boot/models/a.gguf/tensors/output.weight"), want: "tensors, the file has"},
	{do: swap("mnt/vector_boot/models/a.gguf/tensors/output.weight/info.json", `"offset":`, `"offset":1`), want: "the file has"},
	{do: swap("mnt/vector_boot/models/a.gguf/tensors/output.weight/info.json", "output.weight", "another"), want: "is not in the file"},
	{do: func(f *fake) { f.set(0, []byte("XXXX")) }, want: "not a control page"},
	{do: func(f *fake) { f.set(16, word(7)) }, want: "does not end"},
	{do: func(f *fake) { f.set(24, word(7)) }, want: "generation 7 of"},
	{do: func(f *fake) { f.set(32, word(7)) }, want: "the segment is inode 7"},
	{do: rewrite("mnt/vector_boot/models/a.gguf/control", "short"), want: "not 4096 bytes"},
	{do: remove("mnt/geometry_os_v7/output/a.gguf"), want: "a model without a file"},
	{do: remove("mnt/vector_boot/models/d/b.gguf"), want: "a file that is no model"},
	{do: remove("mnt/vector_boot/active"), want: "active"},
	{do: func(f *fake) {
		remove("mnt/vector_boot/active")(f)
		f.symlink("models/none.gguf", "mnt/vector_boot/active")
	}, want: `leads to "models/none.gguf"`},
	{do: swap("mnt/vector_boot/events.log", `"seq":2,`, `"seq":9,`), want: "follows"},
	{do: rewrite("mnt/vector_boot/events.log", "{\n"), want: "not an event"},

	{do: remove("store/live/a.gguf"), want: "no such file"},
	{do: func(f *fake) { f.apart(); f.flip("store/live/a.gguf") }, want: "live/a.gguf: not the bytes of model.gguf"},
	{do: func(f *fake) { f.apart(); f.chmod("store/live/a.gguf", 0o666) }, want: "is wider than"},
	{do: func(f *fake) { f.apart(); f.chown("store/live/a.gguf") }, want: "it belongs to 1:1"},
	{do: func(f *fake) { f.make("store/live/extra", "x") }, want: "a segment that output/ does not show"},
	{do: func(f *fake) { f.make("mnt/geometry_os_v7/output/extra", "x") }, want: "not in the store"},
	{do: func(f *fake) { f.make("store/extra", "x") }, want: "does not belong here"},
	{do: func(f *fake) { f.make("store/stage/1-1", "x") }, want: "left behind"},
	{do: func(f *fake) { f.make("store/stage/journal-1", "x") }, want: "the journal of a commit"},
	{do: func(f *fake) { f.make("store/control/0123", "x") }, want: "the control page of no model"},
	{do: func(f *fake) { f.make("store/control/0123", "x") }, want: "not a control page"},

	{do: remove("source/a.gguf"), want: "a.gguf: not in SOURCE"},
	{do: func(f *fake) { f.make("source/more", "x") }, want: "in SOURCE only"},
	{do: func(f *fake) { f.make("source/.vbootfs/3", "x") }, want: "left by a write"},
	{do: rewrite("source/note", "longer text"), want: "bytes, in SOURCE"},
	{do: func(f *fake) { f.chmod("source/note", 0o600) }, want: "mode -rw-r--r--, in SOURCE -rw-------"},
	{do: func(f *fake) { f.chown("source/note") }, want: "in SOURCE by 1:1"},
	{do: func(f *fake) { f.age("source/note") }, want: "in SOURCE at"},
	{do: func(f *fake) { f.flip("source/a.gguf") }, want: "not the bytes of SOURCE"},
	{do: func(f *fake) { remove("source/symlink")(f); f.symlink("elsewhere", "source/symlink") }, want: `in SOURCE to "elsewhere"`},
	{do: func(f *fake) { remove("source/note")(f); f.symlink("elsewhere", "source/note") }, want: "in SOURCE"},
	{do: unlinked("source/d/link.gguf"), want: "is one file with"},

	{of: "store", do: func(f *fake) { f.make("store/stage/journal-1", "x") }, want: "the journal is damaged: its checksum"},
	{of: "store", do: func(f *fake) { f.journal(1 << 40) }, want: "the journal is damaged: no tensor has 4 bytes at"},
	{of: "store", do: func(f *fake) { f.make("store/stage/damaged-1", "x") }, want: "a damaged journal that was put aside"},
	{of: "store", do: func(f *fake) { f.make("store/control/0123", "x") }, want: "not a control page"},
	{of: "source", do: func(f *fake) { f.make("source/.vbootfs/3", "x") }, want: "left by a write"},
	{of: "source", do: rewrite("source/d/b.gguf", "GGUF"), want: "not a valid GGUF"},
}

// broken is one invariant that is broken.
type broken struct {
	of   string // what is looked at: the mount, or else the store or the SOURCE alone
	do   func(*fake)
	want string
}

func (b *broken) path() string {
	if b.of == "" {
		return "mnt"
	}
	return b.of
}

// journal makes one that puts four bytes into a.gguf.
func (f *fake) journal(off int64) {
	f.t.Helper()
	info, err := os.Stat(f.at("store/live/a.gguf"))
	if err != nil {
		f.t.Fatal(err)
	}
	line := fmt.Sprintf(`{"ino":%d,"path":"","generation":3,"noted":2,"patches":[{"off":%d,"bytes":4,"file":"1-1","at":0}]}`, idOf(info).ino, off)
	sum := crc32.Checksum([]byte(line), crc32.MakeTable(crc32.Castagnoli))
	f.make(fmt.Sprintf("store/stage/journal-%d", idOf(info).ino), fmt.Sprintf("%s\n%08x\n", line, sum))
	f.make("store/stage/1-1", "abcd")
}

func rewrite(p, text string) func(*fake) { return func(f *fake) { f.put(p, []byte(text)) } }

func swap(p, old, new string) func(*fake) {
	return func(f *fake) {
		f.t.Helper()
		if before := string(read(f.t, f.at(p))); !strings.Contains(before, old) {
			f.t.Fatalf("%s has no %q: %.400s", p, old, before)
		}
		f.replace(p, old, new)
	}
}

func remove(p string) func(*fake) {
	return func(f *fake) { must(f.t, "rm", "-r", f.at(p)) }
}

// unlinked makes a name of a file that has several a file of its own.
func unlinked(p string) func(*fake) {
	return func(f *fake) {
		must(f.t, "cp", "-a", f.at(p), f.at("other"))
		must(f.t, "mv", f.at("other"), f.at(p))
	}
}

// apart makes the segment of a.gguf another file than the one in output/.
func (f *fake) apart() { unlinked("store/live/a.gguf")(f) }

func (f *fake) make(p, content string) {
	must(f.t, "mkdir", "-p", filepath.Dir(f.at(p)))
	write(f.t, f.at(p), []byte(content))
}

func (f *fake) symlink(target, p string) { must(f.t, "ln", "-s", target, f.at(p)) }

func (f *fake) chmod(p string, mode os.FileMode) {
	f.t.Helper()
	if err := os.Chmod(f.at(p), mode); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) chown(p string) {
	f.t.Helper()
	if err := os.Chown(f.at(p), 1, 1); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) age(p string) {
	f.t.Helper()
	if err := os.Chtimes(f.at(p), time.Time{}, time.Unix(1, 0)); err != nil {
		f.t.Fatal(err)
	}
}
