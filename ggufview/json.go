package ggufview

import "unicode/utf8"

// jsonText builds JSON, or only measures it, so that the length and the text
// of a value come from the same code.
type jsonText struct {
	dst     []byte
	measure bool
	n       int64 // bytes that measure has seen
}

func (j *jsonText) raw(s string) {
	if j.measure {
		j.n += int64(len(s))
	} else {
		j.dst = append(j.dst, s...)
	}
}

func (j *jsonText) bytes(p []byte) {
	if j.measure {
		j.n += int64(len(p))
	} else {
		j.dst = append(j.dst, p...)
	}
}

// AppendValueJSON appends the value of kv. Numbers are exact: a float32 is
// printed as the double it equals. NaN, Infinity and -Infinity are strings.
// Bytes that are not UTF-8 become U+FFFD; Text and Strings have the exact ones.
func (f *File) AppendValueJSON(dst []byte, kv *KV) []byte {
	j := jsonText{dst: dst}
	j.value(f, kv)
	return j.dst
}

// ValueJSONLen is the number of bytes that AppendValueJSON appends, found
// without storing them.
func (f *File) ValueJSONLen(kv *KV) int64 {
	j := jsonText{measure: true}
	j.value(f, kv)
	return j.n
}

func (j *jsonText) value(f *File, kv *KV) {
	rest := f.elements(kv)
	if kv.Type != ValueArray {
		j.element(f, kv.Elem, rest)
		return
	}
	j.raw("[")
	for i := range kv.Count {
		if i > 0 {
			j.raw(",")
		}
		rest = j.element(f, kv.Elem, rest)
	}
	j.raw("]")
}

// element writes the first value in p and returns what is after it.
func (j *jsonText) element(f *File, t ValueType, p []byte) (rest []byte) {
	if t == ValueString {
		s, rest := f.cutText(p)
		j.text(s)
		return rest
	}
	size := t.Bytes()
	var scratch [32]byte
	j.number(f.appendNumber(scratch[:0], t, p[:size]))
	return p[size:]
}

// number writes text that is a number, true or false; others need quotes.
func (j *jsonText) number(p []byte) {
	if last := p[len(p)-1]; last == 'N' || last == 'y' { // NaN, Infinity
		j.raw(`"`)
		defer j.raw(`"`)
	}
	j.bytes(p)
}

// text writes s as a JSON string. Runs of plain bytes are copied whole.
func (j *jsonText) text(s []byte) {
	j.raw(`"`)
	run := 0 // s[run:i] is plain
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		size, escape := 1, ""
		if c >= utf8.RuneSelf {
			var r rune
			if r, size = utf8.DecodeRune(s[i:]); r != utf8.RuneError || size != 1 {
				i += size
				continue
			}
			escape = "\ufffd"
		} else {
			escape = escapes[c]
		}
		j.bytes(s[run:i])
		j.raw(escape)
		i += size
		run = i
	}
	j.bytes(s[run:])
	j.raw(`"`)
}

// escapes is what JSON puts for the ASCII bytes that can not stand in a string.
var escapes = func() (e [utf8.RuneSelf]string) {
	const hex = "0123456789abcdef"
	for c := range byte(' ') {
		e[c] = `\u00` + hex[c>>4:c>>4+1] + hex[c&15:c&15+1]
	}
	e['\n'], e['\r'], e['\t'], e['"'], e['\\'] = `\n`, `\r`, `\t`, `\"`, `\\`
	return e
}()

// AppendMetadataJSON appends an object of all keys in file order, one a line:
//
//	{
//	"general.architecture":{"type":"string","value":"llama"},
//	"tokenizer.ggml.tokens":{"type":"array","array_type":"string","count":2,"value":["a","b"]}
//	}
//
// Keys that differ only in bytes that are not UTF-8 look the same here.
func (f *File) AppendMetadataJSON(dst []byte) []byte {
	j := jsonText{dst: dst}
	j.metadata(f)
	return j.dst
}

// MetadataJSONLen is the number of bytes that AppendMetadataJSON appends, found
// without storing them.
func (f *File) MetadataJSONLen() int64 {
	j := jsonText{measure: true}
	j.metadata(f)
	return j.n
}

func (j *jsonText) metadata(f *File) {
	j.raw("{")
	for i := range f.KVs {
		kv := &f.KVs[i]
		j.line(i)
		j.text([]byte(kv.Key))
		j.raw(`:{"type":"` + kv.Type.String() + `"`)
		if kv.Type == ValueArray {
			j.raw(`,"array_type":"` + kv.Elem.String() + `"`)
			j.int(`,"count":`, kv.Count)
		}
		j.raw(`,"value":`)
		j.value(f, kv)
		j.raw("}")
	}
	j.raw("\n}\n")
}

// line begins row i of an array or object.
func (j *jsonText) line(i int) {
	if i > 0 {
		j.raw(",")
	}
	j.raw("\n")
}
