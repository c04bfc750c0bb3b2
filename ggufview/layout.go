package ggufview

import "strconv"

// AppendTensorsJSON appends the array "tensors" of layout.json, a tensor a
// line, without a newline at the end. Shapes are in NumPy's order, ne in ggml's;
// offset is absolute; numpy_dtype is null where NumPy has no such type.
func (f *File) AppendTensorsJSON(dst []byte) []byte {
	j := jsonText{dst: append(dst, '[')}
	for i, t := range f.Tensors() {
		j.line(i)
		f.appendTensorJSON(&j, &t)
	}
	j.raw("\n]")
	return j.dst
}

// TensorsJSON is a view of what AppendTensorsJSON appends, between head and tail.
func (f *File) TensorsJSON(head, tail string) View {
	return newLines(head+"[", "\n]"+tail, f.NumTensors(), func(dst []byte, i int) []byte {
		j, t := jsonText{dst: dst}, f.TensorAt(i)
		j.line(i)
		f.appendTensorJSON(&j, &t)
		return j.dst
	})
}

// AppendTensorJSON appends one element of the array "tensors" of layout.json.
func (f *File) AppendTensorJSON(dst []byte, t *Tensor) []byte {
	j := jsonText{dst: dst}
	f.appendTensorJSON(&j, t)
	return j.dst
}

func (f *File) appendTensorJSON(j *jsonText, t *Tensor) {
	j.raw(`{"name":`)
	j.text([]byte(t.Name))
	j.raw(`,"type":"` + t.Type.String() + `"`)
	j.int(`,"type_id":`, int64(t.Type))
	j.raw(`,"shape":[`)
	j.dst = t.appendShape(j.dst, ',')
	j.raw(`],"ne":[`)
	for i, n := range t.NE[:t.Dims] {
		if i > 0 {
			j.raw(",")
		}
		j.int("", n)
	}
	j.int(`],"offset":`, t.Offset)
	j.int(`,"nbytes":`, t.Bytes)
	j.int(`,"elements":`, t.Elements)
	j.int(`,"block_elements":`, int64(t.Type.BlockElements()))
	j.int(`,"block_bytes":`, int64(t.Type.BlockBytes()))
	j.raw(`,"numpy_dtype":` + f.numpyJSON(t.Type) + "}")
}

// int writes what comes before a number, and the number.
func (j *jsonText) int(before string, n int64) {
	j.raw(before)
	var digits [20]byte
	j.bytes(strconv.AppendInt(digits[:0], n, 10))
}

// appendShape writes the dimensions in NumPy's order.
func (t *Tensor) appendShape(dst []byte, sep byte) []byte {
	for i := t.Dims - 1; i >= 0; i-- {
		dst = strconv.AppendInt(dst, t.NE[i], 10)
		if i > 0 {
			dst = append(dst, sep)
		}
	}
	return dst
}

// numpyJSON is NumPy's name of the type in this file's byte order, as JSON.
func (f *File) numpyJSON(t Type) string {
	kind := types[t].numpy
	switch {
	case kind == "":
		return "null"
	case t.BlockBytes() == 1:
		return `"|` + kind + `"`
	case f.BigEndian:
		return `">` + kind + `"`
	}
	return `"<` + kind + `"`
}

// AppendLayoutTSV appends a header line and a line per tensor: name, type,
// shape in NumPy's order (64x64, empty for a scalar), absolute offset, bytes.
// In names, tab, newline and backslash are written \t, \n and \\.
func (f *File) AppendLayoutTSV(dst []byte) []byte {
	dst = append(dst, tsvHead...)
	for _, t := range f.Tensors() {
		dst = t.appendTSV(dst)
	}
	return dst
}

// LayoutTSV is a view of what AppendLayoutTSV appends.
func (f *File) LayoutTSV() View {
	return newLines(tsvHead, "", f.NumTensors(), func(dst []byte, i int) []byte {
		t := f.TensorAt(i)
		return t.appendTSV(dst)
	})
}

const tsvHead = "name\ttype\tshape\toffset\tnbytes\n"

func (t *Tensor) appendTSV(dst []byte) []byte {
	dst = append(appendTSV(dst, t.Name), '\t')
	dst = append(append(dst, t.Type.String()...), '\t')
	dst = append(t.appendShape(dst, 'x'), '\t')
	dst = append(strconv.AppendInt(dst, t.Offset, 10), '\t')
	return append(strconv.AppendInt(dst, t.Bytes, 10), '\n')
}

func appendTSV(dst []byte, s string) []byte {
	for _, c := range []byte(s) {
		switch c {
		case '\t':
			dst = append(dst, `\t`...)
		case '\n':
			dst = append(dst, `\n`...)
		case '\\':
			dst = append(dst, `\\`...)
		default:
			dst = append(dst, c)
		}
	}
	return dst
}
