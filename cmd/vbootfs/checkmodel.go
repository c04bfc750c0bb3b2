package main

import (
	"bytes"
	"crypto/sha256"
	native "encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"vbootfs/ggufview"
)

// modelCheck looks at one directory models/P.
type modelCheck struct {
	*checker
	p     string // path of the model
	dir   string // models/P
	out   string // output/P
	store string // root of the segment store, learnt from the layout; "" of a model in several files

	info   *ggufview.File
	file   *os.File // model.gguf
	layout layout
}

// layout is what is checked of layout.json.
type layout struct {
	ABI        int    `json:"abi"`
	Model      string `json:"model"`
	Generation uint64 `json:"generation"`
	FileBytes  int64  `json:"file_bytes"`
	DataOffset int64  `json:"data_offset"`
	Segment    struct {
		Path  *string `json:"path"`
		Bytes int64   `json:"bytes"`
	} `json:"segment"`
	Tensors json.RawMessage `json:"tensors"`
}

// moment is what changes with a model; while it stays, all else must hold.
func (m *modelCheck) moment() string {
	state, _ := os.ReadFile(filepath.Join(m.dir, "state"))
	gen, _ := os.ReadFile(filepath.Join(m.dir, "generation"))
	return string(state) + string(gen)
}

// tries is how often a model that changes under the check is looked at again.
const tries = 10

// all looks until the model held still meanwhile.
func (m *modelCheck) all() {
	before := m.found
	for range tries {
		m.found = before[:len(before):len(before)]
		at := m.moment()
		m.once()
		if m.moment() == at {
			return
		}
	}
	m.found = before
	m.note(m.dir, "not checked: it keeps changing")
}

func (m *modelCheck) text(name string) string {
	b, err := os.ReadFile(filepath.Join(m.dir, name))
	if err != nil {
		m.find(filepath.Join(m.dir, name), "%v", err)
	}
	return strings.TrimSuffix(string(b), "\n")
}

func (m *modelCheck) once() {
	switch state := m.text("state"); state {
	case "loaded", "cold":
		if text := m.text("error"); state == "cold" && text != "" {
			m.find(m.dir, "cold, and has an error: %s", text)
		}
		m.described(state == "loaded")
	case "failed":
		if m.text("error") == "" {
			m.find(m.dir, "failed, and does not say why")
		}
	case "receiving", "loading":
	default:
		m.find(m.dir, "the state is %q", state)
	}
}

// described looks at a model that has a generation; loaded: its bytes are here.
func (m *modelCheck) described(loaded bool) {
	text := m.text("layout.json")
	if err := json.Unmarshal([]byte(text), &m.layout); err != nil {
		m.find(filepath.Join(m.dir, "layout.json"), "not readable: %v", err)
		return
	}
	m.numbers()
	if !loaded {
		return
	}
	f, err := os.Open(filepath.Join(m.dir, "model.gguf"))
	if err != nil {
		m.find(m.dir, "%v", err)
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err == nil {
		m.size(filepath.Join(m.dir, "model.gguf"), st.Size())
		m.info, err = ggufview.Open(f, st.Size())
	}
	if err != nil {
		m.find(filepath.Join(m.dir, "model.gguf"), "not a valid GGUF: %v", err)
		return
	}
	m.file = f
	m.table()
	m.tensors()
	m.hash()
	if m.layout.Segment.Path != nil {
		m.copies()
	}
}

func (m *modelCheck) size(name string, have int64) {
	if have != m.layout.FileBytes {
		m.find(name, "%d bytes, layout.json says %d", have, m.layout.FileBytes)
	}
}

// numbers compares generations, sizes and the control page.
func (m *modelCheck) numbers() {
	l := &m.layout
	if l.ABI != 1 || l.Model != strings.ToValidUTF8(m.p, "\ufffd") {
		m.find(m.dir, "layout.json is of abi %d and of model %q", l.ABI, l.Model)
	}
	if gen := m.text("generation"); gen != strconv.FormatUint(l.Generation, 10) || gen == "0" {
		m.find(m.dir, "generation %s, layout.json says %d", gen, l.Generation)
	}
	if l.Segment.Bytes != l.FileBytes {
		m.find(m.dir, "the segment has %d bytes, the file %d", l.Segment.Bytes, l.FileBytes)
	}
	if l.Segment.Path == nil {
		return
	}
	name := filepath.Join(m.dir, "control")
	page, err := os.ReadFile(name)
	if err == nil && len(page) != 4096 {
		err = errors.New("not 4096 bytes")
	}
	if err != nil {
		m.find(name, "%v", err)
		return
	}
	m.page(name, page)
}

func (m *modelCheck) page(name string, page []byte) {
	u64 := func(off int) uint64 { return native.NativeEndian.Uint64(page[off:]) }
	if string(page[:8]) != "VBOOTCTL" || native.NativeEndian.Uint32(page[8:]) != 1 {
		m.find(name, "not a control page: %q", page[:12])
		return
	}
	if u64(16)%2 == 1 {
		m.find(name, "a change has begun and does not end: sequence %d", u64(16))
	}
	if u64(24) != m.layout.Generation || int64(u64(40)) != m.layout.FileBytes {
		m.find(name, "generation %d of %d bytes, layout.json says %d of %d", u64(24), u64(40), m.layout.Generation, m.layout.FileBytes)
	}
	if st, err := os.Lstat(m.out); err == nil && u64(32) != st.Sys().(*syscall.Stat_t).Ino {
		m.find(name, "the segment is inode %d, the file %d", u64(32), st.Sys().(*syscall.Stat_t).Ino)
	}
}

// table compares layout.json and layout.tsv with the header of the file.
func (m *modelCheck) table() {
	var want, have bytes.Buffer
	err := errors.Join(json.Compact(&want, m.info.AppendTensorsJSON(nil)), json.Compact(&have, m.layout.Tensors))
	if err != nil || !bytes.Equal(want.Bytes(), have.Bytes()) || m.layout.DataOffset != m.info.DataOffset {
		m.find(filepath.Join(m.dir, "layout.json"), "not the tensors of the file")
	}
	if m.text("layout.tsv")+"\n" != string(m.info.AppendLayoutTSV(nil)) {
		m.find(filepath.Join(m.dir, "layout.tsv"), "not the tensors of the file")
	}
	for _, t := range m.info.Tensors() {
		if t.Offset < 0 || t.Bytes < 0 || t.Offset+t.Bytes > m.layout.FileBytes {
			m.find(m.dir, "tensor %q ends beyond the file", t.Name)
		}
	}
}

// tensors compares tensors/NAME/data with the bytes of the file, of many
// tensors of a large model every so-manieth.
func (m *modelCheck) tensors() {
	dir := filepath.Join(m.dir, "tensors")
	ents, err := os.ReadDir(dir)
	if err != nil || len(ents) != m.info.NumTensors() {
		m.find(dir, "%d tensors, the file has %d: %v", len(ents), m.info.NumTensors(), err)
		return
	}
	step := 1
	if m.layout.FileBytes > wholeUpTo && !m.full {
		step = max(1, len(ents)/samples)
	}
	for i := 0; i < len(ents); i += step {
		m.tensor(filepath.Join(dir, ents[i].Name()))
	}
}

func (m *modelCheck) tensor(dir string) {
	var is struct {
		Name   string
		Offset int64
		NBytes int64
	}
	b, err := os.ReadFile(filepath.Join(dir, "info.json"))
	if err == nil {
		err = json.Unmarshal(b, &is)
	}
	if err != nil {
		m.find(dir, "%v", err)
		return
	}
	t, ok := m.info.Tensor(is.Name)
	if !ok && !strings.Contains(is.Name, "\ufffd") { // a name that JSON cannot tell
		m.find(dir, "tensor %q is not in the file", is.Name)
	}
	if !ok {
		return
	}
	if is.Offset != t.Offset || is.NBytes != t.Bytes {
		m.find(dir, "%d bytes at %d, the file has %d at %d", is.NBytes, is.Offset, t.Bytes, t.Offset)
	}
	m.equal(filepath.Join(dir, "data"), io.NewSectionReader(m.file, t.Offset, t.Bytes), t.Bytes)
}

// equal compares a file with bytes of model.gguf.
func (m *modelCheck) equal(name string, want io.ReaderAt, size int64) {
	f, err := os.Open(name)
	if err != nil {
		m.find(name, "%v", err)
		return
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() != size {
		m.find(name, "%d bytes, not %d", st.Size(), size)
	}
	if off, err := m.differ(f, want, size); off >= 0 {
		m.find(name, "not the bytes of model.gguf at %d: %v", off, err)
	}
}

// hash computes what sha256 says, of large models only when asked to.
func (m *modelCheck) hash() {
	if m.layout.FileBytes > wholeUpTo && !m.full {
		return
	}
	h := sha256.New()
	_, err := io.Copy(h, io.NewSectionReader(m.file, 0, m.layout.FileBytes))
	if want := hex.EncodeToString(h.Sum(nil)); err != nil || m.text("sha256") != want {
		m.find(filepath.Join(m.dir, "sha256"), "not the hash of the bytes: %v", err)
	}
}

// copies compares model.gguf with the file in output/ and with the segment.
func (m *modelCheck) copies() {
	m.equal(m.out, m.file, m.layout.FileBytes)
	seg := *m.layout.Segment.Path
	m.equal(seg, m.file, m.layout.FileBytes)
	a, err := os.Stat(seg)
	b, err2 := os.Stat(m.out)
	if err != nil || err2 != nil {
		return // said already
	}
	if wider := a.Mode().Perm() &^ b.Mode().Perm(); wider != 0 || a.Mode()&(iofs.ModeSetuid|iofs.ModeSetgid)&^b.Mode() != 0 {
		m.find(seg, "its mode %v is wider than %v of the file", a.Mode(), b.Mode())
	}
	x, y := a.Sys().(*syscall.Stat_t), b.Sys().(*syscall.Stat_t)
	if x.Uid != y.Uid || x.Gid != y.Gid {
		m.find(seg, "it belongs to %d:%d, the file to %d:%d", x.Uid, x.Gid, y.Uid, y.Gid)
	}
}
