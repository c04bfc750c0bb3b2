package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// writers are the programs that people load models with. In the scripts, $SRC is
// a file on another file system and $DST is below output/.
var writers = []struct {
	name, script string

	unlinks bool // removes $DST before it writes
	deaf    bool // does not look at the result of close(2)
	temp    bool // writes under another name, renames, and removes the file when that is refused
}{
	{name: "cp", script: `cp "$SRC" "$DST"`},
	{name: "cp --remove-destination", script: `cp --remove-destination "$SRC" "$DST"`, unlinks: true},
	{name: "cat", script: `cat "$SRC" >"$DST"`},
	{name: "dd", script: `dd if="$SRC" of="$DST" bs=64k status=none`},
	{name: "mv", script: `cp "$SRC" "$TMP/moving"; mv "$TMP/moving" "$DST"`, unlinks: true},
	{name: "rsync", script: `rsync "$SRC" "$DST"`, temp: true},
	{name: "rsync --inplace", script: `rsync --inplace -I "$SRC" "$DST"`},
	{name: "tar x", script: `cp "$SRC" "$TMP/$(basename "$DST")"
		tar -C "$TMP" -cf "$TMP/a.tar" "$(basename "$DST")"
		tar -C "$(dirname "$DST")" -xf "$TMP/a.tar"`, unlinks: true},
	{name: "tar x --overwrite", script: `cp "$SRC" "$TMP/$(basename "$DST")"
		tar -C "$TMP" -cf "$TMP/a.tar" "$(basename "$DST")"
		tar -C "$(dirname "$DST")" --overwrite -xf "$TMP/a.tar"`},
	{name: "install", script: `install -m 644 "$SRC" "$DST"`, unlinks: true},
	{name: "tee", script: `tee "$DST" <"$SRC" >/dev/null`},
	{name: "python", script: `python3 -c 'import sys; f = open(sys.argv[2], "wb"); f.write(open(sys.argv[1], "rb").read()); f.close()' "$SRC" "$DST"`},
	{name: "header last", script: `python3 testdata/header_last.py "$SRC" "$DST"`},
	{name: "rust", script: `"$RUST" "$SRC" "$DST"`, deaf: true},
}

func TestWriters(t *testing.T) {
	first, second := makeModel(t, "2M", 1), makeModel(t, "3M", 2)
	bad := filepath.Join(tempDir(t), "bad")
	if err := os.WriteFile(bad, read(t, first)[:1<<20], 0o644); err != nil {
		t.Fatal(err)
	}
	rust := rustProgram(t)
	m := newMount(t, "none")
	for _, w := range writers {
		if w.name == "rust" && rust == "" {
			continue
		}
		t.Run(w.name, func(t *testing.T) {
			write := func(from, p string) (string, int) {
				cmd := exec.Command("sh", "-e", "-c", w.script)
				cmd.Env = append(os.Environ(), "LC_ALL=C", "SRC="+from, "DST="+m.out(p), "RUST="+rust, "TMP="+tempDir(t))
				return output(t, cmd)
			}
			p := strings.ReplaceAll(w.name, " ", "_") + ".gguf"
			good := func(from, generation string) {
				t.Helper()
				if out, code := write(from, p); code != 0 || out != "" {
					t.Fatalf("exit code %d: %s", code, out)
				}
				m.expect(p, "generation", generation)
				m.expect(p, "error", "")
				m.holds(p, read(t, from))
			}
			refused := func(p string) {
				t.Helper()
				out, code := write(bad, p)
				if !w.deaf && (code == 0 || !strings.Contains(out, "Bad message")) {
					t.Errorf("a bad file: exit code %d: %s", code, out)
				}
				if why := m.of(p, "error"); !strings.HasPrefix(why, "at byte ") || strings.Count(why, "\n") != 1 {
					t.Errorf("error is %q", why)
				}
			}
			kept := func(p string) {
				t.Helper()
				if !w.temp {
					same(t, m.out(p), read(t, bad))
				}
			}
			good(first, "1")
			if w.unlinks {
				good(second, "1")
			} else {
				good(second, "2")
				refused(p)
				m.holds(p, read(t, second))
				kept(p + ".rejected")
				good(first, "3")
			}
			refused("new_" + p)
			m.expect("new_"+p, "state", "failed")
			kept("new_" + p)
		})
	}
}

// rustProgram compiles testdata/write_all.rs. A machine without Rust can do
// without this writer, CI can not.
func rustProgram(t testing.TB) string {
	t.Helper()
	if _, err := exec.LookPath("rustc"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("CI needs rustc")
		}
		t.Log("no rustc here: not tried with a Rust program")
		return ""
	}
	name := filepath.Join(tempDir(t), "write_all")
	must(t, "rustc", "-O", "-o", name, "testdata/write_all.rs")
	return name
}

// changes write to a loaded model without truncating it. $FILE is in output/.
var changes = []struct{ name, script string }{
	{"append", `printf tail >>"$FILE"`},
	{"dd conv=notrunc", `printf 'X' | dd of="$FILE" bs=1 seek=$(($(stat -c %s "$FILE") - 1)) conv=notrunc status=none`},
	{"python r+b", `"$PYTHON" -c 'import sys; f = open(sys.argv[1], "r+b"); f.seek(-2, 2); f.write(b"XY"); f.close()' "$FILE"`},
	{"python mmap", `"$PYTHON" -c '
import mmap, sys
with open(sys.argv[1], "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
    m[-3:] = b"XYZ"' "$FILE"`},
	{"gguf-set-metadata", `"$PYTHON" -m gguf.scripts.gguf_set_metadata --force "$FILE" llama.context_length 77 >/dev/null 2>&1`},
}

func TestChangeALoadedModel(t *testing.T) {
	py := python(t)
	from := makeModel(t, "2M", 1)
	before := read(t, from)
	m := newMount(t, "none")
	for i, c := range changes {
		t.Run(c.name, func(t *testing.T) {
			p := string(rune('a'+i)) + ".gguf"
			m.put(from, p)
			plain := filepath.Join(tempDir(t), p)
			must(t, "cp", from, plain)
			for _, file := range []string{plain, m.out(p)} {
				if file != plain {
					keep := holdAll(t, m, p)
					defer keep(before)
				}
				cmd := exec.Command("sh", "-e", "-c", c.script)
				cmd.Env = append(os.Environ(), "FILE="+file, "PYTHON="+py)
				if out, code := output(t, cmd); code != 0 {
					t.Fatalf("exit code %d: %s", code, out)
				}
			}
			after := read(t, plain) // what the same command made of a plain file
			if bytes.Equal(before, after) {
				t.Fatal("the command changed nothing")
			}
			m.holds(p, after)
			m.expect(p, "generation", "2")
		})
	}
}

func TestChangeThatBreaksAModel(t *testing.T) {
	from := makeModel(t, "2M", 1)
	m := newMount(t, "none")
	m.put(from, "a.gguf")
	defer holdAll(t, m, "a.gguf")(read(t, from))
	out, code := m.run("dd", "if=/dev/zero", "of="+m.out("a.gguf"), "bs=64", "count=1", "conv=notrunc", "status=none")
	if code == 0 || !strings.Contains(out, "Bad message") {
		t.Errorf("exit code %d: %s", code, out)
	}
	m.holds("a.gguf", read(t, from))
	m.expect("a.gguf", "generation", "1")
	broken := read(t, from)
	clear(broken[:64])
	same(t, m.out("a.gguf.rejected"), broken)
}

// loads are other ways in which a name comes to mean a model, or does not.
var loads = []struct {
	name, script string
	loaded       string // what models/ lists afterwards
	code         int
}{
	{"rename", `cp "$SRC" x.part; mv x.part a.gguf`, "a.gguf", 0},
	{"temporary names", `cp "$SRC" x.tmp; cp "$SRC" x.gguf.part; cp "$SRC" x.gguf.incomplete; cp "$SRC" .x.gguf`, "", 0},
	{"other names", `echo hello >note.txt; cp "$SRC" model.bin`, "", 0},
	{"subdirectory", `mkdir -p d/e; cp "$SRC" d/e/a.gguf`, "d", 0},
	{"symbolic link", `cp "$SRC" real.bin; ln -s real.bin a.gguf`, "", 0},
	{"hard link", `cp "$SRC" a.gguf; ln a.gguf b.gguf`, "a.gguf\nb.gguf", 0},
	{"empty file", `: >a.gguf`, "", 0},
	{"bad rename", `echo no >x; mv x a.gguf`, "a.gguf", 1},
	{"bad link", `echo no >x; ln x a.gguf`, "a.gguf", 1},
	{"completed", `head -c 1000000 "$SRC" >a.gguf || tail -c +1000001 "$SRC" >>a.gguf`, "a.gguf", 0},
	{"removed", `cp "$SRC" a.gguf; rm a.gguf`, "", 0},
	{"renamed away", `cp "$SRC" a.gguf; mv a.gguf a.bin`, "", 0},
	{"directory renamed", `mkdir d; cp "$SRC" d/a.gguf; mv d e`, "e", 0},
}

func TestLoads(t *testing.T) {
	from := makeModel(t, "2M", 1)
	m := newMount(t, "none")
	for _, l := range loads {
		t.Run(l.name, func(t *testing.T) {
			cmd := exec.Command("sh", "-e", "-c", l.script)
			cmd.Dir, cmd.Env = m.out(""), append(os.Environ(), "LC_ALL=C", "SRC="+from)
			out, code := output(t, cmd)
			if code != l.code || l.code != 0 && !strings.Contains(out, "Bad message") {
				t.Errorf("exit code %d: %s", code, out)
			}
			if have := strings.TrimSpace(must(t, "ls", m.boot("models"))); have != l.loaded {
				t.Errorf("models: %q, want %q", have, l.loaded)
			}
			must(t, "sh", "-c", `rm -rf "$0"/* "$0"/.x*`, m.out(""))
			if have := must(t, "ls", m.boot("models")); l.code == 0 && have != "" {
				t.Errorf("models after rm: %q", have)
			}
		})
	}
}

func TestEmptyFileOverAModelChangesNothing(t *testing.T) {
	from := makeModel(t, "2M", 1)
	m := newMount(t, "none")
	m.put(from, "a.gguf")
	for _, script := range []string{`: >"$0"`, `touch "$0"`, `chmod 600 "$0"`} {
		must(t, "sh", "-c", script, m.out("a.gguf"))
		m.expect("a.gguf", "generation", "1")
		m.holds("a.gguf", read(t, from))
	}
}

func TestHardLinksAreModelsEach(t *testing.T) {
	first, second := makeModel(t, "2M", 1), makeModel(t, "3M", 2)
	m := newMount(t, "none")
	m.put(first, "a.gguf")
	must(t, "ln", m.out("a.gguf"), m.out("b.gguf"))
	m.put(second, "b.gguf")
	m.holds("a.gguf", read(t, first))
	m.holds("b.gguf", read(t, second))
	m.expect("a.gguf", "generation", "1")
	m.expect("b.gguf", "generation", "2")
}

func TestErrorAttribute(t *testing.T) {
	m := newMount(t, "none")
	// A shell does not look at close(2) of its redirections.
	must(t, "sh", "-c", `echo no >"$0"`, m.out("a.gguf"))
	have := must(t, "getfattr", "--only-values", "--absolute-names", "-n", "user.vbootfs.error", m.out("a.gguf"))
	m.expect("a.gguf", "error", have)
}
