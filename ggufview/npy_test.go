package ggufview

import (
	"bytes"
	"encoding/binary"
	"regexp"
	"testing"
)

var npyHeader = regexp.MustCompile(`^\{'descr': '([<>|][a-z][0-9])', 'fortran_order': False, 'shape': (\([0-9, ]*\)), \} *\n$`)

// parseNpy checks the header and returns its parts and the values.
func parseNpy(t *testing.T, v View) (dtype, shape string, body []byte) {
	t.Helper()
	b := readAll(t, v)
	if !bytes.HasPrefix(b, []byte("\x93NUMPY\x01\x00")) {
		t.Fatalf("%q", b[:8])
	}
	n := 10 + int(binary.LittleEndian.Uint16(b[8:]))
	m := npyHeader.FindStringSubmatch(string(b[10:n]))
	if m == nil || n%64 != 0 {
		t.Fatalf("header of %d bytes: %q", n, b[10:n])
	}
	return m[1], m[2], b[n:]
}

func TestNpy(t *testing.T) {
	for _, c := range []struct {
		desc        TensorDesc
		bytes       int
		dtype       string
		shape       string
		rawDtype    string
		rawShape    string
		convertible bool
	}{
		{TensorDesc{"scalar", F32, nil, false}, 4, "<f4", "()", "<f4", "()", true},
		{TensorDesc{"vector", F16, []int64{3}, true}, 6, "<f4", "(3, )", ">f2", "(3, )", true},
		{TensorDesc{"matrix", BF16, []int64{2, 3}, true}, 12, "<f4", "(2, 3)", ">u2", "(2, 3)", true},
		{TensorDesc{"bytes", I8, []int64{5, 1, 1}, true}, 5, "<f4", "(5, 1, 1)", "|i1", "(5, 1, 1)", true},
		{TensorDesc{"blocks", Q8_0, []int64{2, 3, 64}, false}, 408, "<f4", "(2, 3, 64)", "|u1", "(2, 3, 68)", true},
		{TensorDesc{"super", Q4_K, []int64{256}, true}, 144, "<f4", "(256, )", "|u1", "(144, )", true},
		{TensorDesc{"empty", F64, []int64{0, 7}, false}, 0, "<f4", "(0, 7)", "<f8", "(0, 7)", true},
		{TensorDesc{"sums", 9, []int64{32}, false}, 36, "", "", "|u1", "(36, )", false},
	} {
		src := randomBytes(c.bytes, 1)
		raw, err := RawNpy(c.desc, Bytes(src))
		if err != nil {
			t.Fatal(err)
		}
		if dtype, shape, body := parseNpy(t, raw); dtype != c.rawDtype || shape != c.rawShape || !bytes.Equal(body, src) {
			t.Errorf("%s: raw.npy %s %s", c.desc.Name, dtype, shape)
		}
		v, err := F32Npy(c.desc, Bytes(src))
		if (err == nil) != c.convertible {
			t.Fatalf("%s: %v", c.desc.Name, err)
		}
		if err != nil {
			continue
		}
		want, err := F32View(c.desc.Type, c.desc.BigEndian, Bytes(src))
		if err != nil {
			t.Fatal(err)
		}
		if dtype, shape, body := parseNpy(t, v); dtype != c.dtype || shape != c.shape || !bytes.Equal(body, readAll(t, want)) {
			t.Errorf("%s: f32.npy %s %s", c.desc.Name, dtype, shape)
		}
	}
}

// impossible descriptions do not fit eight bytes.
var impossible = []TensorDesc{
	{"too few", F32, []int64{3}, false},
	{"too many", F32, []int64{1}, false},
	{"negative", F32, []int64{-1, -2}, false},
	{"overflow", F32, []int64{1 << 32, 1 << 32, 2}, false},
	{"overflow of bytes", I64, []int64{1 << 61, 1}, false},
	{"half a block", Q8_0, []int64{16}, false},
	{"removed", 4, []int64{2}, false},
	{"unknown", 1000, []int64{8}, false},
}

func TestNpyErrors(t *testing.T) {
	for _, d := range impossible {
		if _, err := RawNpy(d, Bytes(make([]byte, 8))); err == nil {
			t.Errorf("%s: raw.npy", d.Name)
		}
		if _, err := F32Npy(d, Bytes(make([]byte, 8))); err == nil {
			t.Errorf("%s: f32.npy", d.Name)
		}
	}
}
