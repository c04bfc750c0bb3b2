package ggufview

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// TensorDesc says what the stored bytes of a tensor mean.
type TensorDesc struct {
	Name      string
	Type      Type
	Shape     []int64 // NumPy order, slowest first; empty for a scalar
	BigEndian bool
}

// elements is the number of values, or an error if the shape has no such number.
func (d *TensorDesc) elements() (int64, error) {
	n := int64(1)
	for _, dim := range d.Shape {
		if dim < 0 || dim != 0 && n > math.MaxInt64/dim {
			return 0, fmt.Errorf("tensor %q: impossible shape %v", d.Name, d.Shape)
		}
		n *= dim
	}
	return n, nil
}

// check compares the size of the stored bytes with type and shape.
func (d *TensorDesc) check(raw View) error {
	n, err := d.elements()
	if err != nil {
		return err
	}
	if !d.Type.Known() {
		return fmt.Errorf("tensor %q: unknown %v", d.Name, d.Type)
	}
	info := &types[d.Type]
	block, bytes := int64(info.block), int64(info.bytes)
	if n%block != 0 || n/block > math.MaxInt64/bytes || n/block*bytes != raw.Size() {
		return fmt.Errorf("tensor %q: %d bytes are not %v of shape %v", d.Name, raw.Size(), d.Type, d.Shape)
	}
	return nil
}

// bytesShape is the shape of the stored bytes: a row of blocks becomes a row of bytes.
func (d *TensorDesc) bytesShape() []int64 {
	shape := append([]int64(nil), d.Shape...)
	if last := len(shape) - 1; last >= 0 {
		info := &types[d.Type]
		shape[last] = shape[last] / int64(info.block) * int64(info.bytes)
	}
	return shape
}

// Npy is a NumPy array file: a header of format 1.0, padded to 64 bytes so that
// the values can be mapped, and the body. dtype is NumPy's type string, "<f4".
// Format 1.0 holds headers of 64 KiB, more than NumPy's 64 dimensions can fill.
func Npy(dtype string, shape []int64, body View) View {
	var dims strings.Builder
	for _, n := range shape {
		dims.WriteString(strconv.FormatInt(n, 10) + ", ")
	}
	tuple := dims.String()
	if len(shape) > 1 {
		tuple = strings.TrimSuffix(tuple, ", ") // a tuple of one keeps its comma
	}
	dict := fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", dtype, tuple)
	const before = 10 // magic, version, length
	dict += strings.Repeat(" ", 63-(before+len(dict))%64) + "\n"
	head := append([]byte("\x93NUMPY\x01\x00"), byte(len(dict)), byte(len(dict)>>8))
	return Concat(Bytes(append(head, dict...)), body)
}

// RawNpy is the stored values as a NumPy array in the file's byte order. BF16
// comes as 16-bit integers and block-quantised types as bytes, [rows, bytes per row].
func RawNpy(d TensorDesc, raw View) (View, error) {
	if err := d.check(raw); err != nil {
		return nil, err
	}
	dtype := d.Type.NumpyDtype(d.BigEndian)
	switch {
	case dtype != "":
		return Npy(dtype, d.Shape, raw), nil
	case d.Type == BF16 && d.BigEndian:
		return Npy(">u2", d.Shape, raw), nil
	case d.Type == BF16:
		return Npy("<u2", d.Shape, raw), nil
	}
	return Npy("|u1", d.bytesShape(), raw), nil
}

// F32Npy is the values as a NumPy array of float32.
func F32Npy(d TensorDesc, raw View) (View, error) {
	if err := d.check(raw); err != nil {
		return nil, err
	}
	body, err := F32View(d.Type, d.BigEndian, raw)
	if err != nil {
		return nil, fmt.Errorf("tensor %q: %w", d.Name, err)
	}
	return Npy("<f4", d.Shape, body), nil
}
