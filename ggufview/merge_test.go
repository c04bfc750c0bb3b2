package ggufview

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
)

// shard is one of n files; the first has all the keys.
func shard(no, n, total int, tensors ...SpecTensor) *Spec {
	s := &Spec{Tensors: tensors}
	if no == 0 {
		s.KV = append(s.KV, SpecKV{"general.architecture", "llama"}, SpecKV{"general.alignment", uint32(64)})
	}
	s.KV = append(s.KV, SpecKV{"split.no", uint16(no)}, SpecKV{"split.count", uint16(n)}, SpecKV{"split.tensors.count", int32(total)})
	if no == 0 {
		s.KV = append(s.KV, SpecKV{"tokens", []string{"a", "b"}})
	}
	return s
}

func i8(name string, n int) SpecTensor {
	return SpecTensor{Name: name, Type: I8, NE: []int64{int64(n)}, Data: bytes.Repeat([]byte(name[:1]), n)}
}

func merge(t *testing.T, specs ...*Spec) (*File, []byte, error) {
	t.Helper()
	var files []*File
	var views []View
	for _, s := range specs {
		b, err := s.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		f, err := Parse(b, int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		files, views = append(files, f), append(views, Bytes(b))
	}
	f, v, err := Merge(files, views)
	if err != nil {
		return nil, nil, err
	}
	b := make([]byte, v.Size())
	if _, err := v.ReadAt(b, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return f, b, nil
}

// The result is byte for byte what one writer makes of all the tensors.
func TestMerge(t *testing.T) {
	tensors := []SpecTensor{i8("a", 100), i8("b", 64), i8("none", 0), i8("c", 1), i8("d", 200)}
	for _, big := range []bool{false, true} {
		for _, at := range [][]int{{2, 4}, {0, 5}, {5, 5}, {1, 1}} {
			want := &Spec{BigEndian: big, Tensors: tensors, KV: []SpecKV{{"general.architecture", "llama"}, {"general.alignment", uint32(64)},
				{"split.no", uint16(0)}, {"split.tensors.count", int32(5)}, {"tokens", []string{"a", "b"}}, {"split.count", uint16(0)}}}
			shards := []*Spec{shard(0, 3, 5, tensors[:at[0]]...), shard(1, 3, 5, tensors[at[0]:at[1]]...), shard(2, 3, 5, tensors[at[1]:]...)}
			for _, s := range shards {
				s.BigEndian = big
			}
			f, got, err := merge(t, shards...)
			if err != nil {
				t.Fatal(err)
			}
			whole, err := want.Bytes()
			if err != nil || !bytes.Equal(got, whole) || f.Size != int64(len(whole)) {
				t.Errorf("cut at %v: %d bytes instead of %d: %v", at, len(got), len(whole), err)
			}
		}
	}
}

// Shards whose tensors are in any order, or share their bytes, give a whole too.
func TestMergeOfOddShards(t *testing.T) {
	a, err := shard(0, 2, 3, i8("a", 64), i8("b", 64)).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b, err := shard(1, 2, 3, i8("c", 5)).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	f, g := parsed(t, shard(0, 2, 3, i8("a", 64), i8("b", 64)), 0), parsed(t, shard(1, 2, 3, i8("c", 5)), 0)
	for _, order := range [][2]int{{1, 0}, {0, 0}} {
		head, rows := bytes.Clone(a), len(f.table.header) // two, alike in length, and their offsets come last
		for i, from := range order {
			end := int(f.HeaderBytes) - rows + (i+1)*rows/2
			le.PutUint64(head[end-8:], uint64(f.TensorAt(from).Offset-f.DataOffset))
		}
		odd := mustParse(t, head)
		m, v, err := Merge([]*File{odd, g}, []View{Bytes(a), Bytes(b)})
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{strings.Repeat("ab"[order[0]:][:1], 64), strings.Repeat("ab"[order[1]:][:1], 64), "ccccc"} {
			got := make([]byte, len(want))
			if _, err := v.ReadAt(got, m.TensorAt(i).Offset); err != nil && err != io.EOF || string(got) != want {
				t.Errorf("%v: tensor %d is %q: %v", order, i, got, err)
			}
		}
	}
}

func TestMergeRefuses(t *testing.T) {
	a, b := i8("a", 4), i8("b", 4)
	big := shard(1, 2, 2, b)
	big.BigEndian = true
	for want, shards := range map[string][]*Spec{
		"shard 2: split.no is 0, not 1":                                     {shard(0, 2, 2, a), shard(0, 2, 2, b)},
		"shard 1: split.count is 3, not 2":                                  {shard(0, 3, 2, a), shard(1, 3, 2, b)},
		"shard 2: there is no split.no":                                     {shard(0, 2, 2, a), {Tensors: []SpecTensor{b}}},
		"all shards together: split.tensors.count is 3, not 2":              {shard(0, 2, 3, a), shard(1, 2, 3, b)},
		fmt.Sprintf("tensor name %q appears twice, first as number 1", "a"): {shard(0, 2, 2, a), shard(1, 2, 2, a)},
		"shard 2 has another byte order than the first":                     {shard(0, 2, 2, a), big},
	} {
		if _, _, err := merge(t, shards...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
