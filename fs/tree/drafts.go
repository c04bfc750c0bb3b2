package tree

import (
	"strings"

	"vbootfs/ggufview"
)

func makeDraft(at At, name string) error { return at.RT.NewDraft(at.Path, name) }

func dropDraft(at At, name string) error { return at.RT.Abort(at.Path, name) }

func listDrafts(at At) []string { return at.RT.Drafts(at.Path) }

func findDraft(at At, name string) (*Row, At, bool) {
	at.Draft = at.RT.Draft(at.Path, name)
	return draftRow, at, at.Draft != nil
}

func showStaged(at At) ([]byte, error) {
	var b []byte
	for _, name := range at.Draft.Staged() {
		b = append(append(b, name...), '\n')
	}
	return b, nil
}

// stagedNames lists what is staged of one kind, "tensors/" or "metadata/".
func stagedNames(kind string) func(At) []string {
	return func(at At) (names []string) {
		for _, s := range at.Draft.Staged() {
			if name, ok := strings.CutPrefix(s, kind); ok {
				names = append(names, escape(name))
			}
		}
		return names
	}
}

func findDraftTensor(at At, name string) (*Row, At, bool) {
	_, at, ok := findTensor(at, name)
	return draftTensorRow, at, ok
}

func findDraftKey(at At, name string) (*Row, At, bool) {
	_, at, ok := findKey(at, name)
	return draftKeyRow, at, ok
}

// dataDraft is a tensor as the draft would leave it.
func dataDraft(at At) (ggufview.View, error) {
	v, done, err := at.now()
	if err != nil {
		return nil, err
	}
	return held{v, done}, nil
}

func dataDraftF32(at At) (ggufview.View, error) {
	raw, done, err := at.now()
	if err != nil {
		return nil, err
	}
	v, err := ggufview.F32View(at.Tensor.Type, at.Gen.Info.BigEndian, raw)
	if err != nil {
		done()
		return nil, err
	}
	return held{v, done}, nil
}

// held is a view that ends the use of something when it is closed.
type held struct {
	ggufview.View
	done func()
}

// Close ends the use.
func (h held) Close() { h.done() }

func showDraftKey(at At) ([]byte, error) {
	v, ok := at.Draft.Key(at.KV.Key)
	if !ok {
		return at.Gen.Info.ValueText(at.KV), nil
	}
	if v == nil {
		return []byte{}, nil // to be removed
	}
	return ggufview.FormatValue(v)
}
