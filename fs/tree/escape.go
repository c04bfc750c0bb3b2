package tree

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"unicode/utf8"
)

// Names of keys and tensors are any bytes; names of files are not. In a file name
//
//	%XX       is a byte that cannot stand there: "/", NUL, what is not UTF-8, "%"
//	          itself, and the dots of the names "." and ".."
//	%         alone is the empty name
//	...%~HHH  ends a name that would be longer than 255 bytes: its beginning, and
//	          16 hex digits of the SHA-256 of the whole name
//
// A name without "%~" gives the exact bytes back.
const (
	maxName = 255
	cutMark = "%~"
	cutHex  = 16
)

// plain reports whether a name is a file name as it is.
func plain(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= maxName && !strings.ContainsAny(s, "%/\x00") && utf8.ValidString(s)
}

// escape is the file name of a key or tensor.
func escape(s string) string {
	if plain(s) {
		return s
	}
	full := percent(s)
	if len(full) <= maxName {
		return full
	}
	return shorten(full, digest(s))
}

// percent writes what cannot stand in a file name as %XX.
func percent(s string) string {
	if s == "" {
		return "%"
	}
	dots := s == "." || s == ".."
	var b strings.Builder
	for rest := s; rest != ""; {
		r, n := utf8.DecodeRuneInString(rest)
		if bad := r == utf8.RuneError && n == 1; bad || dots || r == 0 || r == '/' || r == '%' {
			b.WriteByte('%')
			b.WriteString(strings.ToUpper(hex.EncodeToString([]byte(rest[:1]))))
		} else {
			b.WriteString(rest[:n])
		}
		rest = rest[n:]
	}
	return b.String()
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// shorten cuts an escaped name, never inside an escape or a character, and marks
// it with the beginning of digits.
func shorten(full, digits string) string {
	k := min(maxName-len(cutMark)-cutHex, len(full))
	for k < len(full) && !utf8.RuneStart(full[k]) {
		k--
	}
	if i := strings.LastIndexByte(full[:k], '%'); i > k-3 && k < len(full) {
		k = i
	}
	return full[:k] + cutMark + digits[:cutHex]
}

// names maps between positions in a file's header and file names, which are
// different for different positions.
type names struct {
	list []string       // by position
	odd  map[string]int // positions of names that are not plain
}

func newNames(n int, name func(int) string) *names {
	x := &names{list: make([]string, n), odd: map[string]int{}}
	for i := range x.list {
		s := name(i)
		f := escape(s)
		if f != s {
			f = x.free(f, s)
			x.odd[f] = i
		}
		x.list[i] = f
	}
	return x
}

// free is f, or, if somebody made a long name whose hash begins like that of
// another one, f with the next digits.
func (x *names) free(f, s string) string {
	for digits := digest(s); len(digits) > cutHex; {
		if _, taken := x.odd[f]; !taken {
			break
		}
		digits = digits[cutHex:]
		f = shorten(percent(s), digits)
	}
	return f
}
