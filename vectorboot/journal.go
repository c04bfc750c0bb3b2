package vectorboot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
	"vbootfs/shm"
)

// A journal says what a commit in place is about to write, so that the next
// start can write it again. It is a file of Store.Stage with the name "journal-"
// and the inode number of the segment: a line of JSON, and a line with its
// CRC-32C in hex. The bytes themselves are not in it, but in the files, also of
// Store.Stage, that the commit takes them from. A rename makes it count; its
// removal ends the commit.
//
// It is believed only where it fits: each range must be that of a tensor in the
// header of the segment, which no commit in place changes. A journal that is damaged
// is put aside as "damaged-" and the number, and never keeps a mount from
// starting. If its commit had begun, the model is neither before nor after it:
// the file becomes NAME.rejected, and what SOURCE has, if it has the name, is the
// model again.
type journal struct {
	Ino        uint64    `json:"ino"`
	Path       []byte    `json:"path"` // as base64: a path need not be UTF-8
	Generation uint64    `json:"generation"`
	Noted      uint64    `json:"noted"` // generation that was written on the segment before
	Patches    []written `json:"patches"`
}

// written is a patch and where its bytes are.
type written struct {
	patch
	File string `json:"file"` // a name in Store.Stage
	At   int64  `json:"at"`
}

// journalPrefix begins the names of journals that count, damagedPrefix of those
// that were put aside.
const journalPrefix, damagedPrefix = "journal-", "damaged-"

// maxJournal bounds the size of a journal in bytes: the header of a GGUF with as
// many tensors as that is larger.
const maxJournal = 256 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode is the content of the file.
func (j *journal) encode() ([]byte, error) {
	line, err := json.Marshal(j)
	return fmt.Appendf(line, "\n%08x\n", crc32.Checksum(line, castagnoli)), err
}

var errJournal = errors.New("the journal is damaged")

func decodeJournal(b []byte) (j journal, err error) {
	line, sum, _ := bytes.Cut(b, []byte("\n"))
	if want := fmt.Sprintf("%08x\n", crc32.Checksum(line, castagnoli)); string(sum) != want {
		return j, fmt.Errorf("%w: its checksum is %q, not %q", errJournal, sum[:min(len(sum), 9)], want)
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return j, fmt.Errorf("%w: %w", errJournal, err)
	}
	return j, nil
}

// check reports whether a journal is one of a model: noted is the generation that
// is written on its segment, size what a file of Store.Stage has, or -1.
func (j *journal) check(f *ggufview.File, noted uint64, size func(string) int64) error {
	if noted != j.Noted && noted != j.Generation {
		return fmt.Errorf("%w: it leads from generation %d to %d, the segment is of %d", errJournal, j.Noted, j.Generation, noted)
	}
	tensors := map[patch]bool{}
	for _, t := range f.Tensors() {
		tensors[patch{t.Offset, t.Bytes}] = true
	}
	for _, x := range j.Patches {
		if !tensors[x.patch] {
			return fmt.Errorf("%w: no tensor has %d bytes at %d", errJournal, x.Bytes, x.Off)
		}
		if x.File != scratchName(x.File) {
			return fmt.Errorf("%w: %q is no file with new bytes", errJournal, x.File)
		}
		if have := size(x.File); x.At < 0 || x.Bytes > have || x.At > have-x.Bytes {
			return fmt.Errorf("%w: no %d bytes at %d of file %q", errJournal, x.Bytes, x.At, x.File)
		}
	}
	return nil
}

// CheckJournal says why the next start would not follow a journal. name is its own
// in the directory of staged files; segment gives the header of a file by its
// inode number, nil if there is none, and size that of a staged file, -1 if there
// is none.
func CheckJournal(name string, text []byte, segment func(ino uint64) *ggufview.File, size func(string) int64) error {
	j, err := decodeJournal(text)
	if err != nil {
		return err
	}
	if name != journalPrefix+strconv.FormatUint(j.Ino, 10) {
		return fmt.Errorf("%w: it is of segment %d", errJournal, j.Ino)
	}
	f := segment(j.Ino)
	if f == nil {
		return nil // the model was replaced or removed since
	}
	return j.check(f, j.Noted, size)
}

// scratchName returns name if it is a plain one that is not of a journal.
func scratchName(name string) string {
	if strings.Contains(name, "/") || strings.HasPrefix(name, ".") ||
		strings.HasPrefix(name, journalPrefix) || strings.HasPrefix(name, damagedPrefix) {
		return ""
	}
	return name
}

// names are names in Store.Stage: a journal that counts, and then its files.
type names struct {
	dir  *shm.Node
	list []string
}

func (w names) remove() {
	for _, name := range w.list {
		_ = w.dir.Unlink(name) // left behind, it would be written again, to no effect
	}
}

// writeJournal says what a commit is about to do. Caller holds change.
func (rt *Runtime) writeJournal(m *Model, g *Generation, pieces []piece) (_ names, err error) {
	j := journal{Ino: g.Seg.Ino, Path: []byte(m.path), Generation: m.next, Noted: rt.noted(g.Seg.Node)}
	w := names{rt.store.Stage, []string{rt.store.StageName()}}
	defer func() {
		if err != nil {
			w.remove()
		}
	}()
	of := map[*shm.Node]string{}
	for _, x := range pieces {
		name, ok := of[x.file]
		if !ok {
			name = rt.store.StageName()
			w.list = append(w.list, name)
			if err := rt.nameFile(x.file, name); err != nil {
				return w, err
			}
			of[x.file] = name
		}
		j.Patches = append(j.Patches, written{x.patch, name, x.at})
	}
	text, err := j.encode()
	if err != nil {
		return w, err
	}
	n, err := rt.store.Stage.Create(w.list[0], 0o600, nil)
	if err != nil {
		return w, err
	}
	defer n.Close()
	if _, err := n.WriteAt(text, 0); err != nil {
		return w, err
	}
	name := journalPrefix + strconv.FormatUint(j.Ino, 10)
	if err := rt.store.Stage.Rename(w.list[0], rt.store.Stage, name, 0); err != nil {
		return w, err
	}
	w.list[0] = name
	return w, nil
}

// nameFile gives a file without a name one. A file that had one before cannot
// get another: it is copied.
func (rt *Runtime) nameFile(n *shm.Node, name string) error {
	if rt.store.Stage.Link(n, name) == nil {
		return nil
	}
	c, err := rt.store.Stage.Create(name, 0o600, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	return write(c, []piece{{patch{0, n.Size()}, n, 0}}, 0)
}

// redo completes the commit of a daemon that died in it. name is that of the
// journal. An error says that the journal is of no use.
func (rt *Runtime) redo(n *shm.Node, name string) error {
	if n.Size() > maxJournal {
		return fmt.Errorf("%w: %d bytes", errJournal, n.Size())
	}
	text := make([]byte, n.Size())
	if _, err := n.ReadAt(text, 0); err != nil {
		return err
	}
	j, err := decodeJournal(text)
	if err != nil {
		return err
	}
	if name != journalPrefix+strconv.FormatUint(j.Ino, 10) {
		return fmt.Errorf("%w: it is of segment %d", errJournal, j.Ino)
	}
	seg, _ := rt.segment(j.Ino)
	if seg == nil {
		return nil // the model was replaced or removed since
	}
	defer seg.Close()
	g, err := Judge(seg)
	if err != nil {
		return err
	}
	defer g.Release()
	if err := j.check(g.Info, rt.noted(seg), rt.stagedSize); err != nil {
		return err
	}
	return rt.apply(&j, seg)
}

// stagedSize is the size of a regular file in Store.Stage, -1 if there is none.
func (rt *Runtime) stagedSize(name string) int64 {
	n, err := rt.store.Stage.Lookup(name)
	if err != nil {
		return -1
	}
	defer n.Close()
	if n.Type != unix.S_IFREG {
		return -1
	}
	return n.Size()
}

// apply writes what a journal that was checked says.
func (rt *Runtime) apply(j *journal, seg *shm.Node) error {
	for _, x := range j.Patches {
		n, err := rt.store.Stage.Lookup(x.File)
		if err != nil {
			return err
		}
		one := []piece{{x.patch, n, x.At}}
		if err = reserve(seg, one); err == nil {
			err = overwrite(seg, one)
		}
		n.Close()
		if err != nil {
			return err
		}
	}
	if rt.source != nil {
		rt.source.Dirty(seg)
	}
	err := seg.Setxattr(rt.store.Mark("generation"), strconv.AppendUint(nil, j.Generation, 10), 0)
	if errors.Is(err, unix.ENOTSUP) { // numbering starts over, here as in a commit
		return nil
	}
	return err
}

// segment finds a file of the live tree by its inode number, and its path. The
// path in a journal is of no use: the daemon may have died in a rename.
func (rt *Runtime) segment(ino uint64) (found *shm.Node, at string) {
	_ = Walk(rt.store.Live, ".", func(p string, n *shm.Node) { // what cannot be listed has no models
		if n.Ino == ino && found == nil {
			if d, err := n.Dup(); err == nil {
				found, at = d, p
			}
		}
	})
	return found, at
}
