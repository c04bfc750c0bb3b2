// Package ggufview reads GGUF, the file format of llama.cpp, as data: the
// header is parsed once, in place, over bytes that are usually shared memory
// mapped by many processes, and everything else is a window on those bytes.
//
// # The format
//
//	byte 0   "GGUF"                 the same four bytes in both byte orders
//	     4   u32 version            2 or 3; read backwards it is 0x02000000 or 0x03000000
//	     8   u64 tensors
//	    16   u64 keys
//	    24   keys × {
//	             string key         string = u64 length, bytes (no NUL)
//	             u32    type
//	             value              number, bool (1 byte), string, or an
//	         }                      array = u32 element type, u64 count, elements
//	         tensors × {
//	             string name
//	             u32    dimensions  0 (scalar) to 4
//	             u64    ne[dimensions]  ne[0] is the length of a row
//	             u32    type        see types.go
//	             u64    offset      from the start of the data
//	         }
//	         zeros up to a multiple of the alignment, if there are tensors
//	         data                   each tensor at a multiple of the alignment
//
// In a big-endian file every number is big-endian, tensor data included. It is
// recognised by the version: one of its lower 16 bits is set in the right order.
//
// # Ownership
//
// A [File] from [Parse] keeps a slice of the header. Keys are copies, and so is the
// table of tensors from its first use on; string values and arrays are read from
// the slice each time, so it must stay mapped while they are used. The contents
// may change meanwhile: what is read can then be wrong, but nothing reads out of
// bounds or panics.
//
// # Limits
//
// Reading costs time and memory in proportion to the header that is really
// there, never to what it claims: a count is compared with the bytes left before
// anything is allocated, and duplicates are found by hashing. On top of that:
// 2^20 keys, 2^20 tensors, 64 KiB a key or name, 1 GiB a string, 2^30 elements
// an array, 2^26 strings in all arrays together, 2 GiB of tensor table,
// 1 GiB of header in [Open].
//
// # What is accepted
//
// Readers differ on odd files. This one accepts what can be shown safely, and
// refuses what has no clear meaning:
//
//	accepted                                     refused
//	gaps between tensors, any order              offset not a multiple of the alignment
//	tensors that share all their bytes           tensors that overlap in part
//	zero dimensions                              dimensions whose product overflows, even beside a zero
//	names: empty, long, NUL, '/', not UTF-8      the same name or key twice; empty key
//	alignment 1, 2, 4, ...                       alignment 0, 24, or not a uint32 (llama.cpp refuses it too)
//	no padding after the last tensor             a tensor that ends beyond the file
//	bytes after the last tensor                  tensor types that ggml removed or never had
//	known keys with odd types or values          arrays of arrays (llama.cpp refuses them too)
//	no padding if there are no tensors           version 1: 32-bit counts, out of use since 2023
//
// Every refusal is a [FormatError] with the offset of the field. Its Incomplete
// field tells a file that is merely too short from one that more bytes can not mend.
// Values are data: a chat template is handed out as bytes and never evaluated.
//
// # Writing
//
// [Spec] writes a file from a literal, [Gen] a llama-shaped model of any size,
// for tests, benchmarks and changed copies.
package ggufview
