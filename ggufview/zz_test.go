package ggufview

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestZZ(t *testing.T) {
	for _, n := range filepath.SplitList(os.Getenv("ZZ")) {
		if n == "" {
			continue
		}
		b, _ := os.ReadFile(n)
		f, err := Parse(b, int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		t0 := time.Now()
		o := f.AppendMap(nil, filepath.Base(n))
		fmt.Println(n, len(o), time.Since(t0))
		os.WriteFile("/tmp/w6/"+filepath.Base(n)+".svg", o, 0o644)
		t0 = time.Now()
		r, err := f.Report(filepath.Base(n), nil, nil)
		fmt.Println(len(r), err, time.Since(t0))
		t0 = time.Now()
		var st []*Stats
		for _, x := range f.ReportTensors() {
			s, _ := ComputeStats(context.Background(), x.Type, f.BigEndian, Bytes(b[x.Offset:x.Offset+x.Bytes]))
			st = append(st, s)
		}
		r, err = f.Report(filepath.Base(n), nil, st)
		fmt.Println(len(r), err, time.Since(t0))
		os.WriteFile("/tmp/w6/"+filepath.Base(n)+".html", r, 0o644)
	}
}
