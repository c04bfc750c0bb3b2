package ggufview

import (
	"bytes"
	"fmt"
	"io"
	"testing"
)

// sameWindows reads all windows of a size and some others.
func sameWindows(t *testing.T, v View, want []byte) {
	t.Helper()
	if v.Size() != int64(len(want)) {
		t.Fatalf("size %d, want %d", v.Size(), len(want))
	}
	for _, n := range []int{1, 7, 1000, len(want), len(want) + 9} {
		p := make([]byte, n)
		for off := 0; off < len(want); off += max(1, min(n, len(want)/17)) {
			k, err := v.ReadAt(p, int64(off))
			if whole := want[off:min(off+n, len(want))]; !bytes.Equal(p[:k], whole) || (err == nil) != (k == n) || err != nil && err != io.EOF {
				t.Fatalf("%d bytes at %d: %d, %v", n, off, k, err)
			}
		}
	}
	if k, err := v.ReadAt(make([]byte, 1), v.Size()); k != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", k, err)
	}
}

func TestLines(t *testing.T) {
	for _, n := range []int{0, 1, 63, 64, 65, 300} {
		for _, ends := range []string{"", "<head and tail>"} {
			line := func(dst []byte, i int) []byte { return fmt.Appendf(dst, "%0*d\n", i%17, i) }
			want := []byte(ends)
			for i := range n {
				want = line(want, i)
			}
			sameWindows(t, newLines(ends, ends, n, line), append(want, ends...))
		}
	}
}

func TestLayoutViews(t *testing.T) {
	for _, s := range []Spec{sample(false), sample(true), {}} {
		f := mustParse(t, mustBytes(t, s))
		sameWindows(t, f.TensorsJSON("a", "b"), append(f.AppendTensorsJSON([]byte("a")), 'b'))
		sameWindows(t, f.LayoutTSV(), f.AppendLayoutTSV(nil))
		if got := f.MetadataJSONLen(); got != int64(len(f.AppendMetadataJSON(nil))) {
			t.Errorf("metadata.json of %d bytes", got)
		}
	}
}

// BenchmarkLayout is layout.json from the first byte to the last, and what it costs
// to know its size.
func BenchmarkLayout(b *testing.B) {
	f := mustParse(b, generate(b, Gen{Tensors: 10_000}))
	b.Run("measure", func(b *testing.B) {
		for b.Loop() {
			f.TensorsJSON("", "")
		}
	})
	v, p := f.TensorsJSON("", ""), make([]byte, 128<<10)
	b.Run("read", func(b *testing.B) {
		b.SetBytes(v.Size())
		b.ReportAllocs()
		for b.Loop() {
			for off := int64(0); off < v.Size(); off += int64(len(p)) {
				if _, err := v.ReadAt(p, off); err != nil && err != io.EOF {
					b.Fatal(err)
				}
			}
		}
	})
}
