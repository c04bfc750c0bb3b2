package main

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"vbootfs/scripts/frame"
)

// known are failures of vbootfs that have a reason.
var known = []struct {
	suite       string
	site, tests *regexp.Regexp
	why         string
}{}

// reason is why a test fails, "" when nobody knows.
func reason(suite, site, test string) string {
	for _, k := range known {
		if k.suite == suite && k.site.MatchString(site) && k.tests.MatchString(test) {
			return k.why
		}
	}
	return ""
}

// table is the part of docs/SEMANTICS.md.
func (r *run) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s; made with `scripts/suites --write`.\n\n", frame.Machine())
	b.WriteString("| suite | what | tmpfs | loopback | vbootfs |\n|---|---|---|---|---|\n")
	for _, row := range r.rows {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", row.suite.name, frame.Cell(row.suite.what),
			row.results["tmpfs"], row.results["loopback"], row.ours())
	}
	return b.String() + r.failures()
}

// String is a cell of the table.
func (res result) String() string {
	all := res.passed + len(res.failed)
	if len(res.failed) == 0 {
		return fmt.Sprintf("all %d", all)
	}
	return fmt.Sprintf("%d of %d", res.passed, all)
}

// ours is the cell for all modes of vbootfs.
func (w row) ours() string {
	cells := map[string][]string{}
	var order []string
	for _, s := range sites[2:] {
		text := w.results[s.name].String()
		if cells[text] == nil {
			order = append(order, text)
		}
		cells[text] = append(cells[text], s.name)
	}
	if len(order) == 1 {
		return order[0]
	}
	for i, text := range order {
		order[i] = text + " (" + strings.Join(cells[text], "; ") + ")"
	}
	return strings.Join(order, ", ")
}

// each calls do for every failure of vbootfs.
func (r *run) each(do func(suite, site, test, what, why string)) {
	for _, row := range r.rows {
		for _, s := range sites[2:] {
			failed := row.results[s.name].failed
			for _, test := range slices.Sorted(maps.Keys(failed)) {
				do(row.suite.name, s.name, test, failed[test], reason(row.suite.name, s.name, test))
			}
		}
	}
}

// failures lists what vbootfs fails, with reasons.
func (r *run) failures() string {
	var b strings.Builder
	r.each(func(suite, site, test, what, why string) {
		if why == "" {
			why = "not known yet: " + what
		}
		fmt.Fprintf(&b, "- %s, %s, `%s`: %s\n", suite, site, test, why)
	})
	if b.Len() == 0 {
		return "\nvbootfs, in each of its four modes (with and without passthrough, with and without SOURCE), fails nothing.\n"
	}
	return "\nWhat vbootfs fails, and why:\n\n" + b.String()
}

// surprises is an error when vbootfs fails where no reason is known.
func (r *run) surprises() error {
	var all []string
	r.each(func(suite, site, test, what, why string) {
		if why == "" {
			all = append(all, fmt.Sprintf("%s (%s) fails %s: %s", suite, site, test, what))
		}
	})
	if len(all) == 0 {
		return nil
	}
	return errors.New(strings.Join(all, "\n"))
}
