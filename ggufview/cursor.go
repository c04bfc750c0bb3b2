package ggufview

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"
)

// byteOrder is true for big-endian. Unlike binary.ByteOrder its methods are
// inlined, which the loop over a vocabulary needs.
type byteOrder bool

func (big byteOrder) u16(p []byte) uint16 {
	v := binary.LittleEndian.Uint16(p)
	if big {
		v = bits.ReverseBytes16(v)
	}
	return v
}

func (big byteOrder) u32(p []byte) uint32 {
	v := binary.LittleEndian.Uint32(p)
	if big {
		v = bits.ReverseBytes32(v)
	}
	return v
}

func (big byteOrder) u64(p []byte) uint64 {
	v := binary.LittleEndian.Uint64(p)
	if big {
		v = bits.ReverseBytes64(v)
	}
	return v
}

// cursor walks over the header. The first error stays; after it every read
// gives zero and does not move.
type cursor struct {
	b       []byte // the first bytes of the file
	size    int64  // of the file
	pos     int64
	order   byteOrder
	err     *FormatError
	names   arena
	strSeen uint64 // strings in arrays so far
}

func (c *cursor) fail(at int64, format string, args ...any) {
	if c.err == nil {
		c.err = &FormatError{Off: at, Msg: fmt.Sprintf(format, args...)}
	}
}

// missing reports that the field at byte at needs the first need bytes of the
// file, and there are fewer.
func (c *cursor) missing(at, need int64, what string) {
	if need > c.size {
		c.fail(at, "%s needs %d bytes, the file has %d", what, need, c.size)
	} else {
		c.fail(at, "%s needs %d bytes, only the first %d were given", what, need, len(c.b))
	}
	c.err.Incomplete, c.err.need = true, need
}

// about says in the message what the error is in.
func (c *cursor) about(kind, name string) {
	if name != "" {
		c.err.Msg = kind + " " + quote(name) + ": " + c.err.Msg
	}
}

// limit refuses a count that no real file has.
func (c *cursor) limit(at int64, what string, n, limit uint64) {
	if c.err == nil && n > limit {
		c.fail(at, "%d %s, the limit is %d", n, what, limit)
	}
}

// room checks that n things of at least each bytes fit in the file after the
// fixed part and used more bytes, before anything is allocated for them.
func (c *cursor) room(at int64, what string, n, each, used uint64) {
	if need := fixedBytes + used + n*each; c.err == nil && need > uint64(c.size) {
		c.missing(at, int64(need), fmt.Sprintf("%d %s", n, what))
	}
}

// fits is how many things of each bytes the rest of b can hold.
func (c *cursor) fits(each int) int { return (len(c.b) - int(c.pos)) / each }

// take returns the next n bytes, nil after an error.
func (c *cursor) take(n uint64, what string) []byte { return c.takeAt(c.pos, n, what) }

// takeAt is take for bytes whose length was read at byte at. n is at most 2^33.
func (c *cursor) takeAt(at int64, n uint64, what string) []byte {
	if c.err != nil {
		return nil
	}
	if n > uint64(int64(len(c.b))-c.pos) {
		c.missing(at, c.pos+int64(n), what)
		return nil
	}
	p := c.b[c.pos : c.pos+int64(n)]
	c.pos += int64(n)
	return p
}

func (c *cursor) u32(what string) uint32 {
	if p := c.take(4, what); len(p) == 4 {
		return c.order.u32(p)
	}
	return 0
}

func (c *cursor) u64(what string) uint64 {
	if p := c.take(8, what); len(p) == 8 {
		return c.order.u64(p)
	}
	return 0
}

// text returns the bytes of a length and what it counts.
func (c *cursor) text(what string, limit uint64) []byte {
	at := c.pos
	n := c.u64(what)
	if c.err == nil && n > limit {
		c.fail(at, "%s of %d bytes, the limit is %d", what, n, limit)
	}
	return c.takeAt(at, n, what)
}

func (c *cursor) name(what string) string { return c.names.keep(c.text(what, maxName)) }

// strings passes over n strings, counted at byte at. This loop is most of the
// time that the header of a model with a vocabulary takes.
func (c *cursor) strings(at int64, n uint64) {
	c.strSeen += n
	c.limit(at, "strings in arrays", c.strSeen, maxStrings)
	if c.err != nil {
		return
	}
	if n > uint64(len(c.b)-int(c.pos))/8 {
		c.missing(at, c.pos+int64(8*n), "array")
		return
	}
	rest, order := c.b[c.pos:], c.order
	for range n {
		if len(rest) < 8 {
			break
		}
		l := order.u64(rest)
		if l > uint64(len(rest)-8) || l > maxText {
			break
		}
		rest = rest[8+l:]
		n--
	}
	c.pos = int64(len(c.b) - len(rest))
	if n > 0 { // stopped early: text finds out why
		c.text("string", maxText)
		c.fail(c.pos, "string changed while it was read")
	}
}

// arena keeps names in a few big strings, so that ten thousand names cost a
// handful of allocations and hold on to nothing but their own bytes.
type arena struct{ strings.Builder }

func (a *arena) keep(p []byte) string {
	if len(p) > a.Cap()-a.Len() {
		size := min(max(2*a.Cap(), 1<<10), 64<<10)
		a.Reset()
		a.Grow(max(len(p), size))
	}
	n := a.Len()
	a.Write(p)
	return a.String()[n:]
}

// quote makes a name fit for one line of an error message.
func quote(name string) string {
	if len(name) > 80 {
		return fmt.Sprintf("%q... (%d bytes)", name[:80], len(name))
	}
	return fmt.Sprintf("%q", name)
}
