package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The pages of docs/ that have a heading "Promises" make a promise with each
// list item below it. A test that shows one to be true quotes it, in any package;
// TestPromisesAreTested finds those that nobody quotes.

// promise says that a test is about a sentence of a page, such as
// "docs/SECURITY.md": the whole list item, as it would be on one line.
func promise(t testing.TB, page, sentence string) {
	t.Helper()
	if !slices.Contains(promised(string(read(t, filepath.Join("../..", page)))), sentence) {
		t.Errorf("%s does not promise: %s", page, sentence)
	}
}

// promised are the list items below headings "Promises" and the headings under
// those, each on one line.
func promised(page string) (items []string) {
	level, open := 0, false // of the heading we are under, 0 for none; whether an item goes on
	for _, line := range strings.Split(page, "\n") {
		text := strings.TrimSpace(line)
		switch hashes := len(line) - len(strings.TrimLeft(line, "#")); {
		case hashes > 0:
			if open = false; strings.TrimSpace(line[hashes:]) == "Promises" {
				level = hashes
			} else if hashes <= level {
				level = 0
			}
		case level == 0:
		case strings.HasPrefix(text, "- "):
			items, open = append(items, text[2:]), true
		case text == "":
			open = false
		case open && line[0] == ' ':
			items[len(items)-1] += " " + text
		}
	}
	return items
}

// quoted are the string constants of every test.
func quoted(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	err := filepath.WalkDir("../..", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(name, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if e, ok := n.(ast.Expr); ok {
				if s, ok := constant(e); ok {
					found[s] = true
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// constant is the value of a string literal, or of several that are added.
func constant(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		return s, err == nil && e.Kind == token.STRING
	case *ast.BinaryExpr:
		a, ok := constant(e.X)
		b, ok2 := constant(e.Y)
		return a + b, ok && ok2 && e.Op == token.ADD
	}
	return "", false
}

func TestPromisesAreTested(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	tests := quoted(t)
	for _, page := range pages {
		for _, s := range promised(string(read(t, page))) {
			if !tests[s] {
				t.Errorf("%s: no test quotes: %s", filepath.Base(page), s)
			}
		}
	}
}

func TestPromisesOfAPage(t *testing.T) {
	page := "# Page\n- no promise\n\n## Promises\nText.\n\n- One that\n  goes on.\n- Two.\n\n### Part\n  text\n- Three.\ntext\n## Next\n- none\n"
	if have, want := promised(page), []string{"One that goes on.", "Two.", "Three."}; !slices.Equal(have, want) {
		t.Errorf("found %q, want %q", have, want)
	}
}
