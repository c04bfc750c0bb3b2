package tree

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"strings"

	"github.com/cespare/xxhash/v2"

	"vbootfs/ggufview"
)

// hashed feeds a view to hashes and stops with ctx.
func hashed(ctx context.Context, v ggufview.View, to ...hash.Hash) error {
	buf := make([]byte, 256<<10)
	for off := int64(0); off < v.Size(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), v.Size()-off)]
		if n, err := v.ReadAt(p, off); n < len(p) {
			return fmt.Errorf("hashing at byte %d: %w", off, err)
		}
		for _, h := range to {
			h.Write(p) // never fails
		}
		off += int64(len(p))
	}
	return nil
}

type fileHash struct{} // key of Generation.Once

// dataSHA256 has a size before the hash is computed.
func dataSHA256(at At) (ggufview.View, error) {
	return newKept(at.Gen, fileHash{}, 2*sha256.Size+1, func(ctx context.Context) (ggufview.View, error) {
		h := sha256.New()
		err := hashed(ctx, unmapped{at.Gen}, h)
		return ggufview.Bytes(fmt.Appendf(nil, "%x\n", h.Sum(nil))), err
	}), nil
}

// manifestFile is the file that hashes.manifest speaks of: the one beside it.
const manifestFile = "model.gguf"

// inLine keeps a tensor's name on its line.
var inLine = strings.NewReplacer("\n", "%0A", "\r", "%0D", "\x00", "%00")

// Keys of Generation.Once.
type (
	manifestHashes struct{}
	manifestSize   struct{}
)

// dataManifest is what `llama-gguf-hash --xxh64 --sha256 model.gguf` prints: two
// lines per tensor and two for the data of all tensors one after the other.
func dataManifest(at At) (ggufview.View, error) {
	size, err := at.Gen.Once(manifestSize{}, func() (any, error) {
		each := len(manifestLines("", make([]byte, 8), make([]byte, sha256.Size)))
		size := each + 2*len(manifestFile) // the whole
		for _, t := range at.Gen.Info.Tensors() {
			size += each + 2*len(manifestSubject(t.Name))
		}
		return int64(size), nil
	})
	if err != nil {
		return nil, err
	}
	return newKept(at.Gen, manifestHashes{}, size.(int64), func(ctx context.Context) (ggufview.View, error) {
		b, err := manifest(ctx, at, manifestSubjects(at.Gen.Info))
		return ggufview.Bytes(b), err
	}), nil
}

// manifestSubjects are the names in the third column; the whole comes last.
func manifestSubjects(f *ggufview.File) []string {
	var out []string
	for _, t := range f.Tensors() {
		out = append(out, manifestSubject(t.Name))
	}
	return append(out, manifestFile)
}

func manifestSubject(tensor string) string { return manifestFile + ":" + inLine.Replace(tensor) }

func manifestLines(subject string, xxh, sha []byte) string {
	return fmt.Sprintf("xxh64     %x  %s\nsha256    %x  %s\n", xxh, subject, sha, subject)
}

// manifest hashes the tensors one by one and, beside it, all together.
func manifest(ctx context.Context, at At, subjects []string) ([]byte, error) {
	lines := make([]string, len(subjects))
	one := func(i int, v ggufview.View) error {
		xxh, sha := xxhash.New(), sha256.New()
		err := hashed(ctx, unmapped{v}, xxh, sha)
		lines[i] = manifestLines(subjects[i], xxh.Sum(nil), sha.Sum(nil))
		return err
	}
	parts := make([]ggufview.View, len(subjects)-1)
	for i, t := range at.Gen.Info.Tensors() {
		parts[i] = rawOf(at.Gen, &t)
	}
	whole := make(chan error, 1)
	go func() { whole <- one(len(parts), ggufview.Concat(parts...)) }()
	var errs []error
	for i := range parts {
		errs = append(errs, one(i, parts[i]))
	}
	err := errors.Join(append(errs, <-whole)...)
	return []byte(strings.Join(lines, "")), err
}
