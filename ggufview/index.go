package ggufview

import (
	"hash/maphash"
	"math/bits"
)

// index finds positions in a slice by name: a hash table with open addressing
// that holds positions instead of names, so it is smaller than a map and faster
// to fill. The seed is random; no file can be made to collide.
type index struct {
	seed  maphash.Seed
	slots []uint64 // upper half of the hash, then position + 1; 0 is free
}

const tagMask = uint64(0xffffffff << 32)

// newIndex has room for n names, at most half of the slots used.
func newIndex(n int) index {
	return index{maphash.MakeSeed(), make([]uint64, 1<<bits.Len(uint(2*n)))}
}

// slot returns the slot that holds name or would, and the entry to put there
// less its position. at gives the name at a position.
func (x *index) slot(name string, at func(int) string) (slot *uint64, tag uint64) {
	h := maphash.String(x.seed, name)
	mask, tag := uint64(len(x.slots)-1), h&tagMask
	for i := h & mask; ; i = (i + 1) & mask {
		s := x.slots[i]
		if s == 0 || s&tagMask == tag && at(int(uint32(s))-1) == name {
			return &x.slots[i], tag
		}
	}
}

// add enters name at position i unless it is there already; then it returns
// the position of the first one.
func (x *index) add(name string, i int, at func(int) string) (first int, dup bool) {
	slot, tag := x.slot(name, at)
	if *slot != 0 {
		return int(uint32(*slot)) - 1, true
	}
	*slot = tag | uint64(i+1)
	return i, false
}

// find returns the position of name.
func (x *index) find(name string, at func(int) string) (i int, ok bool) {
	if len(x.slots) == 0 {
		return 0, false
	}
	slot, _ := x.slot(name, at)
	return int(uint32(*slot)) - 1, *slot != 0
}
