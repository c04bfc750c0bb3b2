package fs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWritingLoads(t *testing.T) {
	modes(t, func(t *testing.T, s *site) {
		b := model(t, 1)
		p := filepath.Join(s.out, "a.gguf")
		dir := filepath.Join(s.vb, "models/a.gguf")
		f, err := os.Create(p)
		if err != nil {
			t.Fatal(err)
		}
		want(t, dir+"/state", "receiving\n")
		if _, err := f.Write(b[:len(b)-99]); err != nil {
			t.Fatal(err)
		}
		if pr := read(t, dir+"/progress"); !strings.HasPrefix(pr, fmt.Sprintf("bytes %d\ntotal_bytes %d\npercent 99.", len(b)-99, len(b))) {
			t.Errorf("before the end the progress is %q", pr)
		}
		if _, err := f.Write(b[len(b)-99:]); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		want(t, dir+"/state", "loaded\n")
		want(t, dir+"/generation", "1\n")
		want(t, dir+"/error", "")
		want(t, dir+"/model.gguf", string(b))
		want(t, p, string(b))
		if link, err := os.Readlink(s.vb + "/active"); err != nil || link != "models/a.gguf" {
			t.Errorf("active is %q, %v", link, err)
		}
		if read(t, s.vb+"/layout.json") != read(t, dir+"/layout.json") {
			t.Error("the active layout is not the model's")
		}
	})
}

func TestRefusedBytesAreKept(t *testing.T) {
	modes(t, func(t *testing.T, s *site) {
		good, p := model(t, 1), filepath.Join(s.out, "a.gguf")
		bad := good[:len(good)-100]
		wantErr(t, "writing a cut model", os.WriteFile(p, bad, 0o644), unix.EBADMSG)
		want(t, p, string(bad))
		want(t, s.vb+"/models/a.gguf/state", "failed\n")
		text := read(t, s.vb+"/models/a.gguf/error")
		if !strings.HasPrefix(text, "at byte ") {
			t.Errorf("error file: %q", text)
		}
		buf := make([]byte, 1000)
		k, err := unix.Getxattr(p, "user.vbootfs.error", buf)
		if err != nil || string(buf[:k])+"\n" != text {
			t.Errorf("xattr %q, %v", buf[:max(0, k)], err)
		}
		f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(good[len(bad):]); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Errorf("an append completes the file: %v", err)
		}
		want(t, s.vb+"/models/a.gguf/state", "loaded\n")

		wantErr(t, "replacing by rubbish", os.WriteFile(p, []byte("rubbish"), 0o644), unix.EBADMSG)
		want(t, p, string(good))
		want(t, p+".rejected", "rubbish")
		want(t, s.vb+"/models/a.gguf/state", "loaded\n")
		want(t, s.vb+"/models/a.gguf/generation", "1\n")
	})
}

func TestReplaceKeepsReaders(t *testing.T) {
	modes(t, func(t *testing.T, s *site) {
		a, b, p := model(t, 1), model(t, 2), filepath.Join(s.out, "a.gguf")
		write(t, p, a)
		old, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		defer old.Close()
		write(t, p, b)
		want(t, p, string(b))
		want(t, s.vb+"/models/a.gguf/generation", "2\n")
		want(t, s.vb+"/models/a.gguf/model.gguf", string(b))
		if have, err := io.ReadAll(old); err != nil || string(have) != string(a) {
			t.Errorf("the old reader sees other bytes (%d, %v)", len(have), err)
		}
	})
}

func TestWritersWithoutTruncationGetACopy(t *testing.T) {
	modes(t, func(t *testing.T, s *site) {
		a, p := model(t, 1), filepath.Join(s.out, "a.gguf")
		write(t, p, a)
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		tail := int64(len(a) - 4)
		if _, err := f.WriteAt([]byte("wxyz"), tail); err != nil {
			t.Fatal(err)
		}
		have := make([]byte, len(a))
		if _, err := f.ReadAt(have, 0); err != nil || string(have) != string(a[:tail])+"wxyz" {
			t.Errorf("the writer does not see its own copy: %v", err)
		}
		want(t, p, string(a))
		want(t, s.vb+"/models/a.gguf/generation", "1\n")
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		want(t, p, string(a[:tail])+"wxyz")
		want(t, s.vb+"/models/a.gguf/generation", "2\n")
	})
}

func TestOpeningForWritingWithoutWritingChangesNothing(t *testing.T) {
	modes(t, func(t *testing.T, s *site) {
		a, p := model(t, 1), filepath.Join(s.out, "a.gguf")
		write(t, p, a)
		for _, flags := range []int{os.O_RDWR, os.O_WRONLY, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_TRUNC} {
			f, err := os.OpenFile(p, flags, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
		want(t, p, string(a))
		want(t, s.vb+"/models/a.gguf/generation", "1\n")
		if left, err := os.ReadDir(s.out); err != nil || len(left) != 1 {
			t.Errorf("output holds %v, %v", left, err)
		}
	})
}

func TestTruncateOfALoadedModel(t *testing.T) {
	modes(t, func(t *testing.T, s *site) {
		a, p := model(t, 1), filepath.Join(s.out, "a.gguf")
		write(t, p, a)
		wantErr(t, "truncate by path", os.Truncate(p, 10), unix.ETXTBSY)
		want(t, p, string(a))
	})
}

func TestRename(t *testing.T) {
	modes(t, func(t *testing.T, s *site) {
		a, b := model(t, 1), model(t, 2)
		at := func(name string) string { return filepath.Join(s.out, name) }
		vb := func(name string) string { return filepath.Join(s.vb, "models", name) }
		write(t, at("up.part"), a)
		if err := os.Rename(at("up.part"), at("m.gguf")); err != nil {
			t.Fatal(err)
		}
		want(t, vb("m.gguf/generation"), "1\n")

		write(t, at("bad.tmp"), a[:100])
		wantErr(t, "renaming a bad file", os.Rename(at("bad.tmp"), at("m.gguf")), unix.EBADMSG)
		want(t, at("bad.tmp"), string(a[:100]))
		want(t, at("m.gguf"), string(a))
		if read(t, vb("m.gguf/error")) == "" {
			t.Error("no reason given")
		}
		wantErr(t, "renaming a bad file to a free name", os.Rename(at("bad.tmp"), at("free.gguf")), unix.EBADMSG)
		want(t, vb("free.gguf/state"), "failed\n")

		write(t, at("n.gguf"), b)
		if err := os.Rename(at("n.gguf"), at("m.gguf")); err != nil {
			t.Fatal(err)
		}
		want(t, at("m.gguf"), string(b))
		want(t, vb("m.gguf/generation"), "2\n")
		want(t, vb("m.gguf/error"), "")
		gone(t, vb("n.gguf"))

		if err := os.Mkdir(at("d"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(at("m.gguf"), at("d/m.gguf")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(at("d"), at("e")); err != nil {
			t.Fatal(err)
		}
		want(t, vb("e/m.gguf/model.gguf"), string(b))
		gone(t, vb("d"))
		gone(t, vb("m.gguf"))

		if err := os.Rename(at("e/m.gguf"), at("e/m.bak")); err != nil {
			t.Fatal(err)
		}
		gone(t, vb("e"))
		want(t, at("e/m.bak"), string(b))
	})
}

func TestExchange(t *testing.T) {
	modes(t, func(t *testing.T, s *site) {
		a, b := model(t, 1), model(t, 2)
		x, y, z := filepath.Join(s.out, "x.gguf"), filepath.Join(s.out, "y.gguf"), filepath.Join(s.out, "z")
		write(t, x, a)
		write(t, y, b)
		swap := func(p, q string) error {
			return unix.Renameat2(unix.AT_FDCWD, p, unix.AT_FDCWD, q, unix.RENAME_EXCHANGE)
		}
		if err := swap(x, y); err != nil {
			t.Fatal(err)
		}
		want(t, s.vb+"/models/x.gguf/model.gguf", string(b))
		want(t, s.vb+"/models/y.gguf/model.gguf", string(a))
		want(t, s.vb+"/models/y.gguf/generation", "2\n")
		write(t, z, a)
		if err := swap(x, z); err != nil {
			t.Fatal(err)
		}
		want(t, s.vb+"/models/x.gguf/model.gguf", string(a))
		want(t, z, string(b))
		write(t, z, b[:50])
		wantErr(t, "exchange with a bad file", swap(x, z), unix.EBADMSG)
		want(t, x, string(a))
		wantErr(t, "rename without replacing", unix.Renameat2(unix.AT_FDCWD, x, unix.AT_FDCWD, y, unix.RENAME_NOREPLACE), unix.EEXIST)
	})
}

func TestRemoveAndLinks(t *testing.T) {
	modes(t, func(t *testing.T, s *site) {
		a, p, q := model(t, 1), filepath.Join(s.out, "p.gguf"), filepath.Join(s.out, "q.gguf")
		write(t, p, a)
		if err := os.Link(p, q); err != nil {
			t.Fatal(err)
		}
		want(t, s.vb+"/models/q.gguf/model.gguf", string(a))
		b := model(t, 2)
		write(t, q, b)
		want(t, p, string(a))
		want(t, q, string(b))
		f, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
		gone(t, s.vb+"/models/p.gguf")
		if have, err := io.ReadAll(f); err != nil || string(have) != string(a) {
			t.Errorf("the reader lost its file: %v", err)
		}
		if link, err := os.Readlink(s.vb + "/active"); err != nil || link != "models/q.gguf" {
			t.Errorf("active is %q, %v", link, err)
		}
		write(t, filepath.Join(s.out, "junk"), []byte("junk"))
		wantErr(t, "linking rubbish as a model", os.Link(filepath.Join(s.out, "junk"), filepath.Join(s.out, "j.gguf")), unix.EBADMSG)
		gone(t, filepath.Join(s.out, "j.gguf"))
	})
}

func gone(t *testing.T, p string) {
	t.Helper()
	if _, err := os.Lstat(p); !os.IsNotExist(err) {
		t.Errorf("%s: %v, want no such file", p, err)
	}
}

func TestLimit(t *testing.T) {
	modes(t, func(t *testing.T, s *site) {})
	s := mount(t, func(o *Options) { o.Limit = 16 << 20 })
	a := model(t, 1)
	write(t, filepath.Join(s.out, "a.gguf"), a)
	wantErr(t, "writing past the limit", os.WriteFile(filepath.Join(s.out, "big"), make([]byte, 20<<20), 0o644), unix.ENOSPC)
	want(t, filepath.Join(s.out, "a.gguf"), string(a))
	var st unix.Statfs_t
	if err := unix.Statfs(s.mnt, &st); err != nil || int64(st.Blocks)*st.Bsize != 16<<20 || st.Bfree*uint64(st.Bsize) > 1<<20 {
		t.Errorf("df shows %d of %d free, %v", st.Bfree, st.Blocks, err)
	}
	if err := os.Remove(filepath.Join(s.out, "big")); err != nil {
		t.Fatal(err)
	}
	for used := int64(20 << 20); used > 1<<20; used, _ = s.store.Usage() {
		runtime.Gosched() // the kernel forgets the file a moment after unlink(2) returned
	}
	write(t, filepath.Join(s.out, "b.gguf"), model(t, 2))
}

func TestHeaderLast(t *testing.T) {
	modes(t, func(t *testing.T, s *site) {
		b, p := model(t, 1), filepath.Join(s.out, "a.gguf")
		f, err := os.Create(p)
		if err != nil {
			t.Fatal(err)
		}
		head := 4096
		for _, part := range []struct {
			b   []byte
			off int64
		}{{make([]byte, head), 0}, {b[head:], int64(head)}, {b[:head], 0}} {
			if _, err := f.WriteAt(part.b, part.off); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		want(t, s.vb+"/models/a.gguf/model.gguf", string(b))
	})
}

func TestCommandFile(t *testing.T) {
	s := mount(t)
	for _, name := range []string{"a.gguf", "b.gguf"} {
		write(t, filepath.Join(s.out, name), model(t, 1))
	}
	f, err := os.OpenFile(s.vb+"/ctl", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("activate a.gguf\n"); err != nil {
		t.Fatal(err)
	}
	if link, _ := os.Readlink(s.vb + "/active"); link != "models/a.gguf" {
		t.Errorf("active is %q", link)
	}
	_, err = f.WriteString("activate nothing.gguf\n")
	wantErr(t, "activating what is not there", err, unix.ENOENT)
	buf := make([]byte, 200)
	k, _ := f.ReadAt(buf, 0)
	if text := string(buf[:k]); !strings.Contains(text, "no such model") {
		t.Errorf("the handle reads %q", text)
	}
	_, err = f.WriteString("explode\n")
	wantErr(t, "an unknown command", err, unix.EINVAL)
	if usage := read(t, s.vb+"/ctl"); !strings.Contains(usage, "activate") {
		t.Errorf("usage: %q", usage)
	}
}

// TestFileThatWasAModel is overwritten under its new, ordinary name while
// readers still rely on the model's bytes.
func TestFileThatWasAModel(t *testing.T) {
	modes(t, func(t *testing.T, s *site) {
		a := string(model(t, 1))
		p, q := filepath.Join(s.out, "a.gguf"), filepath.Join(s.out, "a.bin")
		for name, change := range map[string]func() error{
			"overwrite": func() error { return os.WriteFile(q, []byte("x"), 0o644) },
			"truncate":  func() error { return os.Truncate(q, 1) },
			"empty":     func() error { return os.WriteFile(q, nil, 0o644) },
			"append": func() error {
				f, err := os.OpenFile(q, os.O_WRONLY|os.O_APPEND, 0)
				if err != nil {
					return err
				}
				_, err = f.WriteString("tail")
				return errors.Join(err, f.Close())
			},
		} {
			write(t, p, []byte(a))
			f, err := os.Open(s.vb + "/models/a.gguf/model.gguf")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(p, q); err != nil {
				t.Fatal(err)
			}
			if err := change(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			result := map[string]string{"overwrite": "x", "truncate": a[:1], "append": a + "tail"}
			f2, err := os.Open(q) // the last close of a writer may still be on its way
			if err != nil {
				t.Fatal(err)
			}
			if have, err := io.ReadAll(f2); err != nil || string(have) != result[name] && name != "empty" {
				t.Errorf("%s: %d bytes, %v", name, len(have), err)
			}
			f2.Close()
			if have, err := io.ReadAll(f); err != nil || string(have) != a {
				t.Errorf("%s: the reader of the model lost its bytes: %v", name, err)
			}
			f.Close()
			if err := os.Remove(q); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestRejectedTwice(t *testing.T) {
	modes(t, func(t *testing.T, s *site) {
		p := filepath.Join(s.out, "a.gguf")
		write(t, p, model(t, 1))
		for _, bad := range []string{"one", "another"} {
			wantErr(t, bad, os.WriteFile(p, []byte(bad), 0o644), unix.EBADMSG)
			want(t, p+".rejected", bad)
		}
	})
}

// TestNamesOfAllKinds loads models whose paths are as long or as odd as a file
// system allows.
func TestNamesOfAllKinds(t *testing.T) {
	s := mount(t)
	b := string(smallModel(t))
	deep := strings.Repeat(strings.Repeat("d", 200)+"/", 10)
	for _, p := range []string{
		strings.Repeat("模", 80) + ".gguf", strings.Repeat("x", 250) + ".gguf", "\xff\xfe bytes.gguf", "a b%2F\n'\".gguf", deep + "m.gguf",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(s.out, p)), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(s.out, p), []byte(b))
		m := filepath.Join(s.vb, "models", p)
		want(t, m+"/state", "loaded\n")
		write(t, m+"/tensors/a/data", []byte("FEDCBA9876543210"))
		want(t, m+"/generation", "2\n")
		want(t, m+"/model.gguf", strings.Replace(b, "0123456789abcdef", "FEDCBA9876543210", 1))
	}
}

func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.gguf"), smallModel(t))
	s := mount(t, func(o *Options) { o.Source, o.ReadOnly = dir, true })
	want(t, s.vb+"/models/a.gguf/state", "cold\n")
	want(t, s.vb+"/models/a.gguf/tensors/a/data", "0123456789abcdef")
	want(t, s.vb+"/models/a.gguf/state", "loaded\n")
	for what, err := range map[string]error{
		"a new file":  os.WriteFile(filepath.Join(s.out, "b"), nil, 0o644),
		"a tensor":    os.WriteFile(s.vb+"/models/a.gguf/tensors/a/data", nil, 0o644),
		"a directory": os.Mkdir(filepath.Join(s.out, "d"), 0o755),
	} {
		wantErr(t, what, err, unix.EROFS)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("SOURCE holds %v, %v", left, err)
	}
}
