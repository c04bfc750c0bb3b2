package ggufview

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// odd is what this package decides about files on which readers differ; the
// rule is to show whatever a file system can show safely. doc.go tells the same
// in prose.
var odd = map[string]struct {
	accept bool
	why    string
}{
	"odd_nested_array":       {false, "llama.cpp refuses it, no model has one, and it would need recursion"},
	"odd_nested_array_100k":  {false, "the same; must not cost a stack"},
	"odd_nonutf8_key":        {true, "bytes are bytes; file names are percent-encoded above"},
	"odd_nonutf8_name":       {true, "the same"},
	"odd_nul_in_name":        {true, "names differ as bytes, if not as C strings"},
	"odd_slash_key":          {true, "file names are percent-encoded above"},
	"odd_empty_name":         {true, "llama.cpp accepts it"},
	"odd_key_65536":          {true, "llama.cpp accepts it; one byte over the specification"},
	"odd_name_1000":          {true, "the specification's 64 is a limit of one reader"},
	"odd_align_u64":          {false, "llama.cpp and gguf-py refuse it, so nothing can load it"},
	"odd_offset_gap":         {true, "the specification allows it, forks write it"},
	"odd_shared_offset":      {true, "tied tensors; reading is safe"},
	"odd_header_pad_missing": {true, "without tensors there is nothing to align"},
	"odd_v1":                 {false, "32-bit counts; llama.cpp dropped it in 2023"},
	"odd_tok_scores_u8":      {true, "values are shown by their own type"},
	"odd_block_count_4g":     {true, "shown, never used for sizes"},
	"odd_n_kv_more":          {true, "by chance the bytes make sense when read as a second key, also to llama.cpp"},
	"odd_split_count_65535":  {true, "shown, never used for sizes"},
	"odd_split_type":         {true, "values are shown by their own type"},
}

// sharedData is the whole collection, when this checkout has it beside it. On
// CI it has to.
func sharedData(t testing.TB) string {
	const dir = "../../shared/data"
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI needs the test data in %s", dir)
	}
	return "testdata"
}

// corpus calls do for each file whose path below dir matches the pattern.
func corpus(t testing.TB, dir, pattern string, do func(name string, b []byte)) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no files %s in %s: %v", pattern, dir, err)
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		do(strings.TrimSuffix(filepath.Base(p), ".gguf"), b)
	}
}

func TestMalformed(t *testing.T) {
	for _, dir := range []string{"testdata", sharedData(t)} {
		corpus(t, dir, "malformed/*.gguf", func(name string, b []byte) {
			f, err := Parse(b, int64(len(b)))
			checkRefusal(t, name, b, err)
			decision, decided := odd[name]
			switch {
			case strings.HasPrefix(name, "ok_") || decided && decision.accept:
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
			case strings.HasPrefix(name, "bad_") || decided:
				if err == nil {
					t.Errorf("%s was accepted", name)
				}
			}
			if err == nil {
				useAll(t, f)
			}
		})
	}
}

// checkRefusal checks what holds for every refusal.
func checkRefusal(t *testing.T, name string, b []byte, err error) {
	t.Helper()
	if err == nil {
		return
	}
	var fe *FormatError
	switch {
	case !errors.As(err, &fe):
		t.Errorf("%s: not a FormatError: %v", name, err)
	case fe.Off < 0 || fe.Off > int64(len(b)):
		t.Errorf("%s: offset %d is outside of the file", name, fe.Off)
	case strings.ContainsAny(fe.Error(), "\n\x00") || len(fe.Error()) > 500:
		t.Errorf("%s: not one short line: %q", name, fe.Error())
	}
}

func TestGoodFiles(t *testing.T) {
	dir := sharedData(t)
	if dir == "testdata" {
		corpus(t, dir, "*.gguf", func(name string, b []byte) { checkGood(t, name, b) })
		return
	}
	for _, sub := range []string{"real", "tiny", "quant", "shards", "variants"} {
		corpus(t, dir, sub+"/*.gguf", func(name string, b []byte) { checkGood(t, name, b) })
	}
}

func checkGood(t *testing.T, name string, b []byte) {
	f, err := Parse(b, int64(len(b)))
	if strings.Contains(name, "trunc") {
		if fe := asFormat(err); fe == nil || !fe.Incomplete {
			t.Errorf("%s: %v, want an incomplete file", name, err)
		}
		return
	}
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	useAll(t, f)
}

func asFormat(err error) *FormatError {
	var fe *FormatError
	errors.As(err, &fe)
	return fe
}
