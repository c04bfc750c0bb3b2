// Command benchmark measures vbootfs beside its peers and prints the table of
// docs/PERFORMANCE.md. scripts/bench builds and runs it.
//
//	main.go    options, the groups of rows
//	bench.go   a run: interleaving, selection, what has to be cleaned up
//	table.go   numbers as text, docs/PERFORMANCE.md
//	mount.go   mounting vbootfs; processes
//	model.go   generated and real models
//	python.go  peers in Python (peers.py, llama.py) and in Go (peer/, a module of its own)
//	minimal.go a go-fuse file system of one file, a peer
//
// The other files are the groups.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"vbootfs/scripts/frame"
)

type group struct {
	number int
	name   string
	run    func(*bench) error
}

var groups = []group{
	{1, "ingest", func(b *bench) error { return b.ingest(b.main) }},
	{2, "read", func(b *bench) error { return b.read(b.main) }},
	{3, "map", func(b *bench) error { return b.mapping(b.main) }},
	{4, "llama", (*bench).llama},
	{5, "header", (*bench).header},
	{6, "small", (*bench).small},
	{7, "views", (*bench).views},
	{8, "change", (*bench).change},
	{9, "scale", (*bench).scale},
	{10, "start", (*bench).start},
	{11, "daemon-ingest", func(b *bench) error { return b.ingest(b.daemon) }},
	{11, "daemon-read", func(b *bench) error { return b.read(b.daemon) }},
	{11, "daemon-map", func(b *bench) error { return b.mapping(b.daemon) }},
}

// options are what the command line says.
type options struct {
	binary, python string
	size           int64
	rounds         int
	group, row     *regexp.Regexp
	noPass, write  bool
	quick          bool
}

func main() {
	if len(os.Args) > 2 && children[os.Args[1]] != nil {
		if err := children[os.Args[1]](os.Args[2:]); err != nil {
			fmt.Fprintf(os.Stderr, "benchmark %s: %v\n", os.Args[1], err)
			os.Exit(1)
		}
		return
	}
	frame.Main("benchmark", run)
}

// children are the processes that this program starts of itself.
var children = map[string]func(args []string) error{
	"child-map":     childMap,
	"child-minimal": childMinimal,
}

func run(ctx context.Context) (err error) {
	o, err := parse()
	if err != nil {
		return err
	}
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	b.printHead()
	for _, g := range groups {
		if !o.group.MatchString(g.name) || o.noPass && g.number != 11 {
			continue
		}
		b.group = g
		err := g.run(b)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil { // the others can still be measured
			b.add(line{what: g.name, note: "not measured: " + frame.FirstLine(err.Error())})
		}
	}
	if o.write {
		return b.writeTable("docs/PERFORMANCE.md")
	}
	return nil
}

func parse() (options, error) {
	var o options
	var size, rows string
	flag.StringVar(&o.binary, "binary", "", "vbootfs; scripts/bench gives it")
	flag.StringVar(&o.python, "python", "", "a Python with gguf and xllamacpp; scripts/bench gives it")
	flag.StringVar(&size, "size", "1G", "bytes of the large model: 64M, 1G or 4G")
	flag.IntVar(&o.rounds, "n", 5, "rounds of each row")
	flag.StringVar(&rows, "rows", "", "GROUP[/ROW], two regular expressions")
	flag.BoolVar(&o.noPass, "no-passthrough", false, "only the rows without passthrough (11)")
	flag.BoolVar(&o.quick, "quick", false, "64M and 2 rounds, smaller everything")
	flag.BoolVar(&o.write, "write", false, "put the table into docs/PERFORMANCE.md")
	flag.Parse()
	if o.quick {
		size, o.rounds = "64M", 2
	}
	var err error
	if o.size, err = parseSize(size); err != nil {
		return o, err
	}
	if flag.NArg() > 0 || o.binary == "" || o.python == "" || o.rounds < 1 {
		return o, errors.New("usage: scripts/bench [options], --help lists them")
	}
	g, r, _ := strings.Cut(rows, "/")
	if o.write && (rows != "" || o.noPass) {
		return o, errors.New("--write is for all rows")
	}
	if o.group, err = regexp.Compile("^(?:" + g + ")"); err != nil {
		return o, err
	}
	o.row, err = regexp.Compile(r)
	return o, err
}

func parseSize(s string) (int64, error) {
	units := map[string]int64{"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
	if s != "" {
		if n, err := strconv.ParseInt(s[:len(s)-1], 10, 32); err == nil && n > 0 && units[s[len(s)-1:]] > 0 {
			return n * units[s[len(s)-1:]], nil
		}
	}
	return 0, fmt.Errorf("--size %q: want a number and K, M or G", s)
}
