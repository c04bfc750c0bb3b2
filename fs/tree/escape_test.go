package tree

import (
	"io/fs"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// unescape is the other direction, as the documentation gives it.
func unescape(t *testing.T, f string) string {
	if f == "%" {
		return ""
	}
	s, err := url.PathUnescape(f)
	if err != nil {
		t.Fatalf("%q: %v", f, err)
	}
	return s
}

func TestEscape(t *testing.T) {
	for _, c := range []struct{ name, file string }{
		{"blk.0.attn_q.weight", "blk.0.attn_q.weight"},
		{"größe\n\t 語", "größe\n\t 語"},
		{"", "%"},
		{".", "%2E"},
		{"..", "%2E%2E"},
		{"...", "..."},
		{".hidden", ".hidden"},
		{"../../etc/passwd", "..%2F..%2Fetc%2Fpasswd"},
		{"a\x00b", "a%00b"},
		{"100%", "100%25"},
		{"%2F", "%252F"},
		{"\xff\xc3(", "%FF%C3("},
		{"\u202e", "\u202e"},
		{"\ufffd", "\ufffd"}, // the character itself, not a wrong byte
		{strings.Repeat("x", 255), strings.Repeat("x", 255)},
	} {
		got := escape(c.name)
		if got != c.file {
			t.Errorf("escape(%q) = %q, want %q", c.name, got, c.file)
		}
		if back := unescape(t, got); back != c.name {
			t.Errorf("%q comes back as %q", c.name, back)
		}
	}
}

func TestEscapeLong(t *testing.T) {
	for _, c := range []struct{ name, file string }{
		{strings.Repeat("x", 256), strings.Repeat("x", 237) + "%~22ae89f2cf1b0e0e"},
		{strings.Repeat("x", 235) + strings.Repeat("/", 20), strings.Repeat("x", 235) + "%~"},
		{strings.Repeat("x", 236) + "é" + strings.Repeat("x", 20), strings.Repeat("x", 236) + "%~"},
		{strings.Repeat("/", 100), strings.Repeat("%2F", 79) + "%~"},
	} {
		got := escape(c.name)
		if head, digits, _ := strings.Cut(got, cutMark); !strings.HasPrefix(c.file, head+cutMark) || digits != digest(c.name)[:16] {
			t.Errorf("escape(%q) = %q", c.name, got)
		}
	}
}

// Two long names whose hashes begin alike keep two names.
func TestClash(t *testing.T) {
	long := strings.Repeat("x", 300)
	x := newNames(1, func(int) string { return long })
	other := x.free(x.list[0], long)
	if other == x.list[0] || len(other) > maxName || x.odd[x.list[0]] != 0 {
		t.Errorf("%q and %q", x.list[0], other)
	}
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", ".", "..", "a/b", "%", "%2F", "a\x00", "\xff", "é", strings.Repeat("é/", 200)} {
		f.Add(s, "%~"+s)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		fa, fb := escape(a), escape(b)
		if fa == fb && a != b {
			t.Fatalf("%q and %q are both %q", a, b, fa)
		}
		if len(fa) > maxName || !fs.ValidPath(fa) || fa == "." || strings.ContainsAny(fa, "/\x00") {
			t.Fatalf("%q cannot be a file name", fa)
		}
		if !strings.Contains(fa, cutMark) && unescape(t, fa) != a {
			t.Fatalf("%q does not give %q back", fa, a)
		}
		if plain(a) != (fa == a) {
			t.Fatalf("plain(%q) is %v", a, plain(a))
		}
	})
}

// TestNamesOfATableThatIsGone: somebody cut the file under a model, and its names
// are all the same.
func TestNamesOfATableThatIsGone(t *testing.T) {
	for _, name := range []string{"", "/", "ä/"} {
		x := newNames(3, func(int) string { return name })
		for i, f := range x.list {
			if len(f) > maxName || slices.Contains(x.list[:i], f) {
				t.Errorf("%q: names %q", name, x.list)
			}
		}
	}
}
