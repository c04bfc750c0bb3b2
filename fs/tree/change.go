package tree

import (
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vbootfs/ggufview"
	"vbootfs/shm"
	"vbootfs/vectorboot"
)

// Editor is a file of the tree that is open for writing. What is written takes
// effect at Flush, whole or not at all.
type Editor interface {
	ggufview.View
	io.WriterAt
	Truncate(size int64) error
	Flush() error // close(2); may come several times
	Close()       // the last one
}

// staged is a tensor that is being written: a file of a fixed size in memory.
// Unless it is truncated it begins as what the tensor holds.
type staged struct {
	store *shm.Store
	want  int64
	old   ggufview.View
	apply func(n *shm.Node) error // borrows n, unless
	draft bool                    // it is for a draft, which keeps it

	mu     sync.Mutex // guards all below
	n      *shm.Node  // nil until first used
	filled bool       // n holds what it has to begin with
	dirty  bool
	lent   bool // a draft has n, too: it is replaced before it changes
}

func newStaged(at At, old ggufview.View, trunc bool, apply func(*shm.Node) error) *staged {
	return &staged{store: at.RT.Store(), want: old.Size(), old: old, apply: apply, draft: at.Draft != nil, filled: trunc}
}

// ready makes the file. Caller holds mu.
func (s *staged) ready() error {
	if s.n == nil {
		n, err := s.store.Stage.Tmpfile(0o600, nil)
		if err != nil {
			return err
		}
		s.n = n
	}
	if s.filled {
		return nil
	}
	buf := make([]byte, min(s.want, 1<<20))
	for off := int64(0); off < s.want; {
		k, err := s.old.ReadAt(buf[:min(int64(len(buf)), s.want-off)], off)
		if k == 0 {
			return err
		}
		if _, err := s.n.WriteAt(buf[:k], off); err != nil {
			return err
		}
		off += int64(k)
	}
	s.filled = true
	return nil
}

// own is ready for a change: what a draft has, and a commit may have looked at, is
// left to it. Caller holds mu.
func (s *staged) own() error {
	if !s.lent {
		return s.ready()
	}
	n, err := s.store.Stage.Tmpfile(0o600, nil)
	if err != nil {
		return err
	}
	if _, err := n.Copy(s.n, 0, 0, s.n.Size()); err != nil {
		n.Close()
		return err
	}
	s.n.Close()
	s.n, s.lent = n, false
	return nil
}

func (s *staged) Size() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == nil {
		return s.want
	}
	return s.n.Size()
}

func (s *staged) ReadAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(); err != nil {
		return 0, err
	}
	return s.n.ReadAt(p, off)
}

func (s *staged) WriteAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if off+int64(len(p)) > s.want {
		return 0, unix.EFBIG
	}
	if err := s.own(); err != nil {
		return 0, err
	}
	s.dirty = true
	return s.n.WriteAt(p, off)
}

func (s *staged) Truncate(size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if size > s.want {
		return unix.EFBIG
	}
	if err := s.own(); err != nil {
		return err
	}
	return s.n.Truncate(size)
}

func (s *staged) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dirty {
		return nil // opened, perhaps truncated, nothing written: nothing meant
	}
	if size := s.n.Size(); size != s.want {
		return fmt.Errorf("%d bytes written where %d are stored: %w", size, s.want, unix.EINVAL)
	}
	if err := s.apply(s.n); err != nil {
		return err
	}
	s.dirty, s.lent = false, s.draft
	return nil
}

func (s *staged) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n != nil {
		s.n.Close()
	}
}

// base is the generation that a change is made from.
func (at At) base() uint64 {
	if at.Gen != nil {
		return at.Gen.N
	}
	return at.RT.Generation(at.Path)
}

// put brings new bytes of the tensor where they belong: into the draft, or, last
// writer wins, into the model.
func (at At) put(n *shm.Node, base uint64) error {
	if at.Draft != nil {
		own, err := n.Dup()
		if err != nil {
			return err
		}
		return at.Draft.Stage(at.Tensor.Name, own, base)
	}
	return at.RT.CommitTo(at.Gen, []vectorboot.TensorEdit{{Name: at.Tensor.Name, File: n}}, nil)
}

// now is what the tensor holds, in the draft if it is staged there. done ends
// the use of the view.
func (at At) now() (v ggufview.View, done func(), err error) {
	if at.Draft != nil {
		n, err := at.Draft.Tensor(at.Tensor.Name)
		if err != nil {
			return nil, nil, err
		}
		if n != nil {
			return n, n.Close, nil
		}
	}
	return at.raw(), func() {}, nil
}

// closing is an editor that ends the use of what it was made from.
type closing struct {
	Editor
	done func()
}

func (c closing) Close() { c.Editor.Close(); c.done() }

// editData changes the stored bytes of a tensor.
func editData(at At, trunc bool) (Editor, error) {
	old, done, err := at.now()
	if err != nil {
		return nil, err
	}
	base := at.base()
	return closing{newStaged(at, old, trunc, func(n *shm.Node) error { return at.put(n, base) }), done}, nil
}

// editF32 changes the values of a tensor; they are quantised to its type.
func editF32(at At, trunc bool) (Editor, error) {
	t, big := at.Tensor.Type, at.Gen.Info.BigEndian
	if !t.CanQuantize() {
		return nil, fmt.Errorf("there is no quantiser for %v: %w", t, unix.EACCES)
	}
	raw, done, err := at.now()
	if err != nil {
		return nil, err
	}
	old, err := ggufview.F32View(t, big, raw)
	if err != nil {
		done()
		return nil, err
	}
	base := at.base()
	return closing{newStaged(at, old, trunc, func(n *shm.Node) error {
		q, err := quantised(at, n)
		if err != nil {
			return err
		}
		defer q.Close()
		return at.put(q, base)
	}), done}, nil
}

// quantised makes the stored bytes from a file of little-endian float32.
func quantised(at At, values *shm.Node) (*shm.Node, error) {
	t, big := at.Tensor.Type, at.Gen.Info.BigEndian
	out, err := at.RT.Store().Stage.Tmpfile(0o600, nil)
	if err != nil {
		return nil, err
	}
	step := max(1, (256<<10)/t.BlockElements())
	buf := make([]byte, 4*step*t.BlockElements())
	f := make([]float32, step*t.BlockElements())
	q := make([]byte, step*t.BlockBytes())
	blocks := at.Tensor.Elements / int64(t.BlockElements())
	for done := int64(0); done < blocks; done += int64(step) {
		n := int(min(int64(step), blocks-done))
		vals := f[:n*t.BlockElements()]
		if _, err = values.ReadAt(buf[:4*len(vals)], 4*done*int64(t.BlockElements())); err == nil {
			err = ggufview.Dequantize(ggufview.F32, false, vals, buf[:4*len(vals)])
		}
		if err == nil {
			err = ggufview.Quantize(t, big, q[:n*t.BlockBytes()], vals)
		}
		if err == nil {
			_, err = out.WriteAt(q[:n*t.BlockBytes()], done*int64(t.BlockBytes()))
		}
		if err != nil {
			out.Close()
			return nil, err
		}
	}
	return out, nil
}

// textLimit bounds a text that is written, and textsLimit all of them together, in
// bytes: a vocabulary fits. They are in the daemon's own memory.
const (
	textLimit  = 64 << 20
	textsLimit = 256 << 20

	policyLimit = 64 << 10
	numberLimit = 4 << 10
)

// texts counts the bytes of all texts that are being written.
var texts atomic.Int64

// textEdit is a text that is being written; it takes effect as a whole.
type textEdit struct {
	apply func(string) error
	limit int64 // bytes

	mu    sync.Mutex // guards all below
	b     []byte
	dirty bool
}

func (e *textEdit) Size() int64 { e.mu.Lock(); defer e.mu.Unlock(); return int64(len(e.b)) }

func (e *textEdit) ReadAt(p []byte, off int64) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return ggufview.Bytes(e.b).ReadAt(p, off)
}

func (e *textEdit) WriteAt(p []byte, off int64) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.resize(max(int64(len(e.b)), off+int64(len(p)))); err != nil {
		return 0, err
	}
	e.dirty = true
	return copy(e.b[off:], p), nil
}

func (e *textEdit) Truncate(size int64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.resize(size)
}

func (e *textEdit) resize(size int64) error {
	if size > e.limit {
		return unix.EFBIG
	}
	more := size - int64(len(e.b))
	if texts.Add(more) > textsLimit && more > 0 {
		texts.Add(-more)
		return unix.ENOSPC
	}
	if more <= 0 {
		e.b = e.b[:size]
		return nil
	}
	e.b = append(e.b, make([]byte, more)...)
	return nil
}

func (e *textEdit) Flush() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.dirty {
		return nil
	}
	if err := e.apply(string(e.b)); err != nil {
		return err
	}
	e.dirty = false
	return nil
}

func (e *textEdit) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	texts.Add(-int64(len(e.b)))
	e.b = nil
}

func newTextEdit(limit int64, old []byte, trunc bool, apply func(string) error) Editor {
	e := &textEdit{apply: apply, limit: limit}
	if !trunc {
		e.b = append(e.b, old...)
		texts.Add(int64(len(old)))
	}
	return e
}

// editKey changes the value of a key; its type stays.
func editKey(at At, trunc bool) (Editor, error) {
	kv, base := at.KV, at.base()
	old := at.Gen.Info.ValueText(kv)
	limit := int64(numberLimit)
	if name := kv.TypeName(); name == "string" || strings.HasPrefix(name, "array") {
		limit = textLimit
	}
	return newTextEdit(limit, old, trunc, func(text string) error {
		v, err := ggufview.ParseValue(kv.TypeName(), text)
		if err != nil {
			return fmt.Errorf("key %q: %w: %w", kv.Key, err, unix.EINVAL)
		}
		return at.putKey(kv.Key, v, base)
	}), nil
}

func (at At) putKey(key string, value any, base uint64) error {
	if at.Draft != nil {
		return at.Draft.StageKey(key, value, base)
	}
	edit := []vectorboot.KeyEdit{{KeyEdit: ggufview.KeyEdit{Key: key, Value: value}}}
	if at.Gen != nil { // a file that was opened for this model, not for its name
		return at.RT.CommitTo(at.Gen, nil, edit)
	}
	return at.RT.Commit(at.Path, nil, edit)
}

// setKey is the command "set KEY TYPE VALUE": it also adds keys.
func setKey(at At, args string) error {
	key, rest, _ := strings.Cut(args, " ")
	typ, text, ok := strings.Cut(rest, " ")
	if !ok {
		return fmt.Errorf("usage: set KEY TYPE VALUE: %w", fs.ErrInvalid)
	}
	v, err := ggufview.ParseValue(typ, text)
	if err != nil {
		return fmt.Errorf("%w: %w", err, fs.ErrInvalid)
	}
	return at.putKey(key, v, at.base())
}

// unsetKey is the command "unset KEY".
func unsetKey(at At, key string) error {
	g := at.RT.Acquire(at.Path)
	if g == nil {
		return vectorboot.ErrNoModel
	}
	defer g.Release()
	if _, ok := g.Info.Find(key); !ok {
		return fmt.Errorf("key %q: %w", key, fs.ErrNotExist)
	}
	return at.putKey(key, nil, g.N)
}

func showPolicy(at At) ([]byte, error) { return []byte(at.RT.Policy(at.Path).String()), nil }

func editPolicy(at At, trunc bool) (Editor, error) {
	return newTextEdit(policyLimit, []byte(at.RT.Policy(at.Path).String()), trunc, func(text string) error {
		p, err := vectorboot.ParsePolicy(text)
		if err != nil {
			return fmt.Errorf("%w: %w", err, fs.ErrInvalid)
		}
		return at.RT.SetPolicy(at.Path, p)
	}), nil
}

// inCell keeps a text in its cell, as layout.tsv does.
var inCell = strings.NewReplacer("\\", `\\`, "\t", `\t`, "\n", `\n`)

// showHistory is a table: a generation, when it came, what made it, and the bytes
// that are kept to come back to it.
func showHistory(at At) ([]byte, error) {
	b := []byte("generation\ttime\tchange\tbytes\n")
	for _, v := range at.RT.History(at.Path) {
		b = fmt.Appendf(b, "%d\t%s\t%s\t%d\n", v.N, v.When.UTC().Format(time.RFC3339Nano), inCell.Replace(v.What), v.Bytes)
	}
	return b, nil
}

// rollback is the command "rollback N".
func rollback(at At, arg string) error {
	n, err := strconv.ParseUint(arg, 10, 64)
	if err != nil {
		return fmt.Errorf("generation %q: %w", arg, fs.ErrInvalid)
	}
	return at.RT.Rollback(at.Path, n)
}
