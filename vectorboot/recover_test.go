package vectorboot

import "testing"

// TestPagesOfNobody: a daemon that died between a name and its control page leaves
// a page that no model has.
func TestPagesOfNobody(t *testing.T) {
	rt := newRuntime(t, t.TempDir())
	load(t, rt, "m.gguf")
	page, err := openControl(rt.store, "gone.gguf")
	if err != nil {
		t.Fatal(err)
	}
	page.close()
	if err := rt.Recover(); err != nil {
		t.Fatal(err)
	}
	ents, err := rt.store.Control.Names()
	if err != nil || len(ents) != 1 || ents[0].Name != controlName("m.gguf") {
		t.Errorf("pages %v: %v", ents, err)
	}
}
