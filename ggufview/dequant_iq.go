package ggufview

import (
	"encoding/base64"
	"math/bits"
	"sync"
)

// The IQ types choose groups of eight (or four) magnitudes from a grid, a fixed
// codebook of ggml-common.h, and store signs and scales beside the indices.
// Values: dequantize_row_iq* in ggml-quants.c. A grid row is kept as its bytes
// in a word, first value lowest.

// decodeGrid expands a packed codebook (grids.go): codes of width bits, lowest
// first, stand for the bytes of levels; perRow of them make a row.
func decodeGrid(packed string, width, perRow int, levels ...byte) func() []uint64 {
	return sync.OnceValue(func() []uint64 {
		raw, err := base64.StdEncoding.DecodeString(packed)
		if err != nil {
			panic("ggufview: damaged grid constant") // tested for every grid
		}
		perByte := 8 / width
		rows := make([]uint64, len(raw)*perByte/perRow)
		for i := range len(raw) * perByte {
			code := raw[i/perByte] >> (i % perByte * width) & (1<<width - 1)
			rows[i/perRow] |= uint64(levels[code]) << (i % perRow * 8)
		}
		return rows
	})
}

var (
	gridIQ2_XXS = decodeGrid(packedIQ2_XXS, 2, 8, 8, 25, 43, 0)
	gridIQ2_XS  = decodeGrid(packedIQ2_XS, 2, 8, 8, 25, 43, 0)
	gridIQ2_S   = decodeGrid(packedIQ2_S, 2, 8, 8, 25, 43, 0)
	gridIQ3_XXS = decodeGrid(packedIQ3_XXS, 4, 4, 4, 12, 20, 28, 36, 44, 52, 62)
	gridIQ3_S   = decodeGrid(packedIQ3_S, 4, 4, 1, 3, 5, 7, 9, 11, 13, 15)
	gridIQ1_S   = decodeGrid(packedIQ1_S, 2, 8, 0, 8, 16, 0)
)

// signMasks[b] has 0xff in each byte whose bit is set in b.
var signMasks = func() (t [256]uint64) {
	for i := range t {
		for j := range 8 {
			t[i] |= uint64(i>>j&1) * 0xff << (8 * j)
		}
	}
	return t
}()

// signed negates the bytes of a grid row that signs selects. No byte of the
// grids that carry signs is 0, so no lane carries into the next.
func signed(row uint64, signs byte) uint64 {
	mask := signMasks[signs]
	return (row ^ mask) + mask&ones
}

// evenSigns completes seven stored sign bits to eight with even parity (ksigns_iq2xs).
func evenSigns(seven uint32) byte {
	b := byte(seven & 127)
	return b | byte(bits.OnesCount8(b)&1)<<7
}

func dequantIQ2_XXS(dst []float32, src []byte) {
	grid := (*[256]uint64)(gridIQ2_XXS())
	var q [32]byte
	for len(src) >= 66 {
		d := half(src)
		for i := range 8 {
			part := (*[8]byte)(src[2+8*i:]) // four indices, then 4 times 7 sign bits and 4 of scale
			word := le.Uint32(part[4:])
			for l := range 4 {
				le.PutUint64(q[8*l:], signed(grid[part[l]], evenSigns(word>>(7*l))))
			}
			scale32((*[32]float32)(dst[32*i:]), &q, d*(0.5+float32(word>>28))*0.25)
		}
		dst, src = dst[256:], src[66:]
	}
}

func dequantIQ2_XS(dst []float32, src []byte) {
	grid := (*[512]uint64)(gridIQ2_XS())
	var q [16]byte
	for len(src) >= 74 {
		d := half(src)
		for i := range 16 {
			for l := range 2 {
				word := le.Uint16(src[2+4*i+2*l:])
				le.PutUint64(q[8*l:], signed(grid[word&511], evenSigns(uint32(word>>9))))
			}
			scale := src[66+i/2] >> (i & 1 * 4) & 15
			scale16((*[16]float32)(dst[16*i:]), &q, d*(0.5+float32(scale))*0.25)
		}
		dst, src = dst[256:], src[74:]
	}
}

func dequantIQ2_S(dst []float32, src []byte) {
	grid := (*[1024]uint64)(gridIQ2_S())
	var q [16]byte
	for len(src) >= 82 {
		d := half(src)
		for i := range 16 {
			for l := range 2 {
				k := 2*i + l
				index := int(src[2+k]) | int(src[66+k/4])>>(k&3*2)&3<<8
				le.PutUint64(q[8*l:], signed(grid[index], src[34+k]))
			}
			scale := src[74+i/2] >> (i & 1 * 4) & 15
			scale16((*[16]float32)(dst[16*i:]), &q, d*(0.5+float32(scale))*0.25)
		}
		dst, src = dst[256:], src[82:]
	}
}

func dequantIQ3_XXS(dst []float32, src []byte) {
	grid := (*[256]uint64)(gridIQ3_XXS())
	var q [32]byte
	for len(src) >= 98 {
		d := half(src)
		for i := range 8 {
			word := le.Uint32(src[66+4*i:])
			index := (*[8]byte)(src[2+8*i:])
			for l := range 4 {
				row := grid[index[2*l]] | grid[index[2*l+1]]<<32
				le.PutUint64(q[8*l:], signed(row, evenSigns(word>>(7*l))))
			}
			scale32((*[32]float32)(dst[32*i:]), &q, d*(0.5+float32(word>>28))*0.5)
		}
		dst, src = dst[256:], src[98:]
	}
}

func dequantIQ3_S(dst []float32, src []byte) {
	grid := (*[512]uint64)(gridIQ3_S())
	var q [32]byte
	for len(src) >= 110 {
		d := half(src)
		for i := range 8 {
			index, ninth := (*[8]byte)(src[2+8*i:]), int(src[66+i])
			for l := range 4 {
				row := grid[int(index[2*l])|ninth>>(2*l)&1<<8] |
					grid[int(index[2*l+1])|ninth>>(2*l+1)&1<<8]<<32
				le.PutUint64(q[8*l:], signed(row, src[74+4*i+l]))
			}
			scale := src[106+i/2] >> (i & 1 * 4) & 15
			scale32((*[32]float32)(dst[32*i:]), &q, d*float32(1+2*int(scale)))
		}
		dst, src = dst[256:], src[110:]
	}
}

// The IQ1 types add +-1/8 to grid values of -1, 0 and 1. Their grid holds
// 8*(g+1) and shifted gives 8*g+-1, whole numbers, so that the common loops
// apply with d/8; scaling by a power of two rounds nothing.
func shifted(row uint64, minus bool) uint64 {
	if minus {
		return less(row, 9)
	}
	return less(row, 7)
}

func dequantIQ1_S(dst []float32, src []byte) {
	grid := (*[2048]uint64)(gridIQ1_S())
	var q [32]byte
	for len(src) >= 50 {
		d := half(src)
		for i := range 8 {
			word := le.Uint16(src[34+2*i:])
			for l := range 4 {
				index := int(src[2+4*i+l]) | int(word>>(3*l)&7)<<8
				le.PutUint64(q[8*l:], shifted(grid[index], word&0x8000 != 0))
			}
			scale := float32(word>>12&7*2 + 1)
			scale32((*[32]float32)(dst[32*i:]), &q, float32(d*scale)*0.125)
		}
		dst, src = dst[256:], src[50:]
	}
}

// dequantIQ1_M: the scale of the block is spread over the top nibbles of the
// four words that hold sixteen scales of three bits.
func dequantIQ1_M(dst []float32, src []byte) {
	grid := (*[2048]uint64)(gridIQ1_S())
	var q [16]byte
	for len(src) >= 56 {
		var words [4]uint16
		var spread uint16
		for i := range words {
			words[i] = le.Uint16(src[48+2*i:])
			spread |= words[i] >> 12 << (4 * i)
		}
		d := halves[spread]
		for i := range 16 {
			high := src[32+i] // two times three index bits and a shift bit
			low := int(src[2*i]) | int(high&7)<<8
			le.PutUint64(q[:], shifted(grid[low], high&0x08 != 0))
			low = int(src[2*i+1]) | int(high>>4&7)<<8
			le.PutUint64(q[8:], shifted(grid[low], high&0x80 != 0))
			scale := float32(words[i/4]>>(i&3*3)&7*2 + 1)
			scale16((*[16]float32)(dst[16*i:]), &q, float32(d*scale)*0.125)
		}
		dst, src = dst[256:], src[56:]
	}
}

func dequantIQ4_XS(dst []float32, src []byte) {
	for len(src) >= 136 {
		d, high := half(src), le.Uint16(src[2:])
		for i := range 8 {
			low := src[4+i/2] >> (i & 1 * 4) & 15
			scale := int(low|byte(high>>(2*i)&3<<4)) - 32
			nibbles4NL.scale((*[32]float32)(dst[32*i:]), (*[16]byte)(src[8+16*i:]), d*float32(scale))
		}
		dst, src = dst[256:], src[136:]
	}
}
