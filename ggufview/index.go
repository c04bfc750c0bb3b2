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
	slots []uint32 // upper bits of the hash, then position + 1; 0 is free
}

// positionBits hold a position up to maxEntries, plus one.
const (
	positionBits = 21
	positionMask = 1<<positionBits - 1
)

// newIndex has room for n names, at most half of the slots used.
func newIndex(n int) index {
	return index{maphash.MakeSeed(), make([]uint32, 1<<bits.Len(uint(2*n)))}
}

// hash is what a name's slot depends on; its upper bits are kept there.
func (x *index) hash(name string) uint32 { return uint32(maphash.String(x.seed, name)) }

// slot returns the slot that holds name or would. at gives the name at a position.
func (x *index) slot(h uint32, name string, at func(int) string) *uint32 {
	mask := uint32(len(x.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		s := x.slots[i]
		if s == 0 || (s^h)&^positionMask == 0 && at(int(s&positionMask)-1) == name {
			return &x.slots[i]
		}
	}
}

// add enters name at position i unless it is there already; then it returns
// the position of the first one.
func (x *index) add(name string, i int, at func(int) string) (first int, dup bool) {
	h := x.hash(name)
	slot := x.slot(h, name, at)
	if *slot != 0 {
		return int(*slot&positionMask) - 1, true
	}
	*slot = h&^positionMask | uint32(i+1)
	return i, false
}

// addAll enters the names at the first positions, whose hashes are given, unless
// one is there already: then it returns both positions. Entering many at once
// lets the processor wait for several slots at a time.
func (x *index) addAll(hashes []uint32, at func(int) string) (first, second int, dup bool) {
	mask := uint32(len(x.slots) - 1)
	for n, h := range hashes {
		i := h & mask
		for ; x.slots[i] != 0; i = (i + 1) & mask {
			if s := x.slots[i]; (s^h)&^positionMask == 0 && at(int(s&positionMask)-1) == at(n) {
				return int(s&positionMask) - 1, n, true
			}
		}
		x.slots[i] = h&^positionMask | uint32(n+1)
	}
	return 0, 0, false
}

// find returns the position of name.
func (x *index) find(name string, at func(int) string) (i int, ok bool) {
	if len(x.slots) == 0 {
		return 0, false
	}
	slot := x.slot(x.hash(name), name, at)
	return int(*slot&positionMask) - 1, *slot != 0
}
