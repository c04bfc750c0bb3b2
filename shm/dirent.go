package shm

import (
	"bytes"
	"encoding/binary"
)

// parseDirents reads struct linux_dirent64 (getdents64(2)):
//
//	u64 ino | s64 off | u16 reclen | u8 type | name, NUL, padding
func parseDirents(b []byte) (out []Dirent) {
	for len(b) > 19 {
		reclen := int(binary.NativeEndian.Uint16(b[16:]))
		if reclen < 20 || reclen > len(b) {
			return out
		}
		name := b[19:reclen]
		if i := bytes.IndexByte(name, 0); i >= 0 {
			name = name[:i]
		}
		out = append(out, Dirent{
			Ino:  binary.NativeEndian.Uint64(b),
			Off:  int64(binary.NativeEndian.Uint64(b[8:])),
			Type: uint32(b[18]) << 12,
			Name: string(name),
		})
		b = b[reclen:]
	}
	return out
}
