package ggufview

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"sort"
	"syscall"
	"testing"
)

// eager reads the tensor table of a file whose keys Parse accepts, all at once
// and with numbers of any size, as doc.go tells it. from is where the table begins.
func eager(b []byte, from int64, order binary.ByteOrder, align int64) ([]Tensor, error) {
	r := bytes.NewReader(b[from:])
	n := order.Uint64(b[8:])
	out, seen := []Tensor{}, map[string]bool{}
	for i := range n {
		t, err := eagerRow(r, order)
		if err != nil || seen[t.Name] {
			return nil, errors.Join(err, errors.New("or a name twice"))
		}
		seen[t.Name], t.Index = true, int(i)
		out = append(out, t)
	}
	data := new(big.Int).SetInt64(int64(len(b)) - int64(r.Len()))
	if n > 0 {
		data.Add(data, big.NewInt(align-1)).Sub(data, new(big.Int).Mod(data, big.NewInt(align)))
	}
	if data.Cmp(big.NewInt(int64(len(b)))) > 0 && n > 0 {
		return nil, errors.New("padding")
	}
	for i := range out {
		t := &out[i]
		off := new(big.Int).SetUint64(uint64(t.Offset))
		bad := new(big.Int).Mod(off, big.NewInt(align)).Sign() != 0
		off.Add(off, data)
		end := new(big.Int).Add(off, big.NewInt(t.Bytes))
		if bad || end.Cmp(big.NewInt(int64(len(b)))) > 0 {
			return nil, errors.New("place")
		}
		t.Offset = off.Int64()
	}
	return out, eagerOverlap(out)
}

func eagerRow(r *bytes.Reader, order binary.ByteOrder) (t Tensor, err error) {
	var length, off uint64
	var dims uint32
	read := func(v any) {
		if err == nil {
			err = binary.Read(r, order, v)
		}
	}
	if read(&length); err != nil || length > maxName || length > uint64(r.Len()) {
		return t, errors.Join(err, errors.New("or name"))
	}
	name := make([]byte, length)
	read(name)
	if read(&dims); err != nil || dims > 4 {
		return t, errors.Join(err, errors.New("or dimensions"))
	}
	t.Name, t.Dims, t.NE = string(name), int(dims), [4]int64{1, 1, 1, 1}
	read(t.NE[:dims])
	read(&t.Type)
	if read(&off); err != nil || !t.Type.Known() {
		return t, errors.Join(err, errors.New("or type"))
	}
	elements, product := big.NewInt(1), big.NewInt(1)
	for _, ne := range t.NE {
		if ne < 0 {
			return t, errors.New("dimension")
		}
		elements.Mul(elements, big.NewInt(ne))
		product.Mul(product, big.NewInt(max(ne, 1)))
	}
	size := func(n *big.Int) *big.Int {
		n = new(big.Int).Div(n, big.NewInt(int64(t.Type.BlockElements())))
		return n.Mul(n, big.NewInt(int64(t.Type.BlockBytes())))
	}
	if t.NE[0]%int64(t.Type.BlockElements()) != 0 || !product.IsInt64() || !size(product).IsInt64() {
		return t, errors.New("size")
	}
	t.Elements, t.Bytes, t.Offset = elements.Int64(), size(elements).Int64(), int64(off)
	return t, nil
}

func eagerOverlap(all []Tensor) error {
	all = append([]Tensor(nil), all...)
	sort.SliceStable(all, func(i, j int) bool { return all[i].Offset < all[j].Offset })
	for i, a := range all {
		for _, b := range all[i+1:] {
			if b.Offset >= a.Offset+a.Bytes {
				break
			}
			if a.Bytes > 0 && b.Bytes > 0 && (a.Offset != b.Offset || a.Bytes != b.Bytes) {
				return errors.New("overlap")
			}
		}
	}
	return nil
}

// sameAsEager compares what Parse says with the eager reading; keys have to be valid.
func sameAsEager(t *testing.T, b []byte) {
	t.Helper()
	keys := bytes.Clone(b)
	if len(b) < fixedBytes {
		return
	}
	clear(keys[8:16]) // without tensors: only the keys
	head, err := Parse(keys, int64(len(b)))
	if err != nil || head.ByteOrder().Uint64(b[8:]) > maxEntries {
		return
	}
	want, wantErr := eager(b, head.HeaderBytes, head.ByteOrder(), head.Alignment)
	f, err := Parse(b, int64(len(b)))
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("Parse: %v, eager reading: %v", err, wantErr)
	}
	if err != nil {
		return
	}
	if f.NumTensors() != len(want) {
		t.Fatalf("%d tensors, want %d", f.NumTensors(), len(want))
	}
	for i, got := range f.Tensors() {
		if found, ok := f.Tensor(want[i].Name); got != want[i] || !ok || *found != got {
			t.Fatalf("tensor %d: %+v, found %+v, want %+v", i, got, found, want[i])
		}
	}
}

func TestTableCorpus(t *testing.T) {
	corpus(t, "testdata", "malformed/*.gguf", func(_ string, b []byte) { sameAsEager(t, b) })
	corpus(t, sharedData(t), "malformed/*.gguf", func(_ string, b []byte) { sameAsEager(t, b) })
	sameAsEager(t, generate(t, Gen{Tensors: 1000}))
}

// FuzzTable: the table says what an eager reading of the same bytes says.
func FuzzTable(f *testing.F) {
	corpus(f, "testdata", "malformed/*.gguf", func(_ string, b []byte) { f.Add(b) })
	f.Add(mustBytes(f, sample(false)))
	f.Add(mustBytes(f, sample(true)))
	f.Fuzz(func(t *testing.T, b []byte) { sameAsEager(t, b) })
}

// FuzzChangedTable: whatever somebody makes of the header between Parse and the first
// use of the table, tensors lie within the file.
func FuzzChangedTable(f *testing.F) {
	f.Add([]byte{0xff}, uint16(40))
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8}, uint16(900))
	f.Fuzz(func(t *testing.T, change []byte, at uint16) {
		b := mustBytes(t, sample(at&1 == 1))
		file := mustParse(t, b)
		copy(b[int(at)%len(b):], change)
		for i, got := range file.Tensors() {
			if got.Index != i || got.Offset < file.DataOffset || got.Bytes < 0 || got.Offset > file.Size-got.Bytes {
				t.Fatalf("%+v", got)
			}
			file.Tensor(got.Name)
		}
		file.AppendLayoutTSV(nil)
	})
}

// TestTableFault: the file was cut between Parse and the first use of the table.
func TestTableFault(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := (Gen{Tensors: 500}).WriteTo(file); err != nil {
		t.Fatal(err)
	}
	size, err := file.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	b, err := syscall.Mmap(int(file.Fd()), 0, int(size), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(b)
	f := mustParse(t, b)
	if err := file.Truncate(0); err != nil {
		t.Fatal(err)
	}
	for _, got := range f.Tensors() {
		if got.Bytes != 0 || got.Offset != f.DataOffset {
			t.Fatalf("%+v", got)
		}
	}
	if _, ok := f.Tensor("output.weight"); ok {
		t.Error("found in a file that is gone")
	}
}
