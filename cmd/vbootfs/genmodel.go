package main

import (
	"bufio"
	"os"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"vbootfs/ggufview"
)

// genModel makes models of any size for tests and benchmarks.
func genModel() *cobra.Command {
	var g ggufview.Gen
	var size string
	cmd := &cobra.Command{
		Use:   "gen-model FILE",
		Short: "write a made-up model of a given size",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			n, err := humanize.ParseBytes(binaryUnit(size))
			if err != nil {
				return usagef("--size %q: %v", size, err)
			}
			g.Bytes = int64(n)
			return generate(g, args[0])
		},
	}
	cmd.Flags().StringVar(&size, "size", "64M", "about how many bytes")
	cmd.Flags().IntVar(&g.Tensors, "tensors", 0, "number of tensors (0: as the size suggests)")
	cmd.Flags().IntVar(&g.Tokens, "tokens", 0, "number of vocabulary entries")
	cmd.Flags().Uint64Var(&g.Seed, "seed", 1, "seed of the values")
	return cmd
}

func generate(g ggufview.Gen, name string) error {
	f, err := os.Create(name)
	if err != nil {
		return failure{exitSystem, err}
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	if _, err := g.WriteTo(w); err != nil {
		return failure{exitSystem, err}
	}
	if err := w.Flush(); err != nil {
		return failure{exitSystem, err}
	}
	return f.Close()
}
