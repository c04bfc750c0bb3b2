// Command suite runs standard test suites of file systems on vbootfs and on two
// peers, and prints the table of docs/SEMANTICS.md. scripts/suites builds and runs it.
//
//	main.go    options, the run
//	site.go    where the suites run: a tmpfs, a loopback, vbootfs in four modes
//	suites.go  the suites, and how their output is read
//	table.go   the table, and the failures that are known
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"time"

	"vbootfs/scripts/frame"
)

// run is a run of all suites.
type run struct {
	ctx      context.Context
	programs string // directory of vbootfs, loopback and posixtest
	dirs     frame.Dirs
	seconds  int // of each stressor, and of what runs for a time
	rows     []row
}

// row is what one suite said on every site.
type row struct {
	suite   *suite
	results map[string]result // by site
}

// result is what one suite said on one site.
type result struct {
	passed  int
	skipped int
	failed  map[string]string // name of a test -> what was wrong
}

func (r *result) fail(name, why string) {
	if r.failed == nil {
		r.failed = map[string]string{}
	}
	r.failed[name] = why
}

func main() { frame.Main("suite", start) }

func start(ctx context.Context) (err error) {
	r := &run{ctx: ctx}
	only := flag.String("only", "", "suites by a regular expression")
	write := flag.Bool("write", false, "put the table into docs/SEMANTICS.md")
	flag.StringVar(&r.programs, "programs", "", "directory of the programs; scripts/suites gives it")
	flag.IntVar(&r.seconds, "seconds", 1, "of each stressor")
	flag.Parse()
	pattern, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	if flag.NArg() > 0 || r.programs == "" || r.seconds < 1 || *write && *only != "" {
		return errors.New("usage: scripts/suites [--seconds N] [--only SUITES | --write]")
	}
	if r.dirs, err = frame.MakeDirs("suite"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.dirs.Remove()) }()
	for i := range suites {
		if pattern.MatchString(suites[i].name) {
			if err := r.suite(&suites[i]); err != nil {
				return err
			}
		}
	}
	text := r.table()
	fmt.Print("\n", text)
	if *write {
		err = frame.WritePart("docs/SEMANTICS.md", "<!-- suites:begin -->", "<!-- suites:end -->", text)
	}
	return errors.Join(err, r.surprises())
}

// suite runs one suite everywhere.
func (r *run) suite(s *suite) error {
	row := row{s, map[string]result{}}
	for _, at := range sites {
		began := time.Now()
		var res result
		err := at.with(r, func(dir string) (err error) {
			res, err = s.run(r, dir)
			return err
		})
		if r.ctx.Err() != nil {
			return r.ctx.Err()
		}
		if err != nil {
			res.fail("(the suite)", err.Error())
		}
		row.results[at.name] = res
		fmt.Fprintf(os.Stderr, "%-10s %-24s %5d passed %3d failed %3d skipped %8s\n", s.name, at.name, res.passed, len(res.failed), res.skipped, time.Since(began).Round(time.Second/10))
		for name, why := range res.failed {
			fmt.Fprintf(os.Stderr, "\t%s: %s\n", name, why)
		}
	}
	r.rows = append(r.rows, row)
	return nil
}
