package tree

import (
	"context"

	"vbootfs/ggufview"
)

func showMap(at At) ([]byte, error) { return at.Gen.Info.AppendMap(nil, at.Path), nil }

type reportSize struct{}

// dataReport is a page for a browser. Its histograms are computed when it is
// read; without them it is as long.
func dataReport(at At) (ggufview.View, error) {
	f := at.Gen.Info
	size, err := at.Gen.Once(reportSize{}, func() (any, error) {
		b, err := f.Report(at.Path, parts(at), nil)
		return int64(len(b)), err
	})
	if err != nil {
		return nil, err
	}
	return newLazy(at.Gen, size.(int64), func(ctx context.Context) (ggufview.View, error) {
		var stats []*ggufview.Stats
		for _, t := range f.ReportTensors() {
			s, err := statsOf(ctx, at.Gen, &t)
			if err != nil {
				return nil, err
			}
			stats = append(stats, s)
		}
		b, err := f.Report(at.Path, parts(at), stats)
		return ggufview.Bytes(b), err
	}), nil
}

// parts are the files of a model that has several.
func parts(at At) (out []ggufview.Part) {
	for _, g := range at.Gen.Shards() {
		out = append(out, ggufview.Part{Name: g.Path, Bytes: g.Info.Size, Tensors: g.Info.NumTensors()})
	}
	return out
}
