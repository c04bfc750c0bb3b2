package tree

import (
	"path"
	"strings"

	"vbootfs/ggufview"
)

// The whole mount. A new file is one row here and the function that it names.
var root = &Row{Mode: 0o755, Rows: []*Row{
	{Name: "geometry_os_v7", Mode: 0o755, Rows: []*Row{
		{Name: "output", Output: true, Doc: "an ordinary writable directory; writing a *.gguf here loads it"},
	}},
	{Name: "vector_boot", Mode: 0o755, Rows: runtimeRows},
}}

// vector_boot/
var runtimeRows = []*Row{
	{Name: "version", Mode: 0o444, Show: showVersion, Doc: "program version"},
	{Name: "status", Mode: 0o444, Show: showStatus, Live: true, Doc: "state, memory, sessions"},
	{Name: "stats.json", Mode: 0o444, Show: padded(showStats), Live: true},
	{Name: "metrics", Mode: 0o444, Show: padded(showMetrics), Live: true, Doc: "counters since the start; metrics for Prometheus"},
	{Name: "events.log", Mode: 0o444, Data: dataEvents, Live: true, Doc: "what happened, a JSON object a line; tail -f it"},
	{Name: "events", Mode: 0o444, Stream: openEvents, Live: true, Quiet: true, Doc: "the same as a stream (ls does not list it)"},
	{Name: "ctl", Mode: 0o644, Show: showUsage, Do: doRuntime, Live: true, Doc: "commands, one a write; cat it for the list"},
	{Name: "active", Mode: 0o777, Link: linkActive, Live: true, Doc: "the model that the two files below speak of"},
	{Name: "layout.json", Mode: 0o444, Data: ofActive(dataLayout), Live: true},
	{Name: "layout.tsv", Mode: 0o444, Data: ofActive(dataTSV), Live: true, Doc: "where the tensors of the active model lie"},
	modelsRow,
}

// vector_boot/models/, and its subdirectories: models stand at the path that
// they have in output/.
var modelsRow = &Row{Name: "models", Mode: 0o555, Find: findModel, List: listModels, Doc: "one directory per loaded GGUF"}

// vector_boot/models/P/
var modelRow = &Row{Mode: 0o555, Rows: []*Row{
	{Name: "state", Mode: 0o444, Show: showState, Live: true, Doc: "receiving, loading, loaded, cold or failed"},
	{Name: "error", Mode: 0o444, Show: showError, Live: true, Doc: "why the last load failed; empty if it did not"},
	{Name: "progress", Mode: 0o444, Show: showProgress, Live: true, Doc: "bytes received of how many"},
	{Name: "ctl", Mode: 0o666, Show: showModelUsage, Do: doModel, Live: true, Doc: "commands for this model"},
	{Name: "generation", Mode: 0o444, Show: showGeneration, Gen: true, Doc: "version number: each change adds one"},
	{Name: "summary.txt", Mode: 0o444, Show: showSummary, Gen: true, Keep: true, Doc: "what the model is, on one page"},
	{Name: "map.svg", Mode: 0o444, Show: showMap, Gen: true, Keep: true},
	{Name: "report.html", Mode: 0o444, Data: dataReport, Gen: true, Bytes: true, Slow: true, Doc: "pictures: the file as a map; a page for a browser"},
	{Name: "model.gguf", Mode: 0o444, Segment: true, Gen: true, Bytes: true, Doc: "the exact bytes; map them"},
	{Name: "model.safetensors", Mode: 0o444, Data: dataSafetensors(ggufview.F32), Only: fitsSafetensors, Gen: true, Bytes: true,
		Doc: "for safetensors, quantised tensors as F32"},
	{Name: "model.bf16.safetensors", Mode: 0o444, Data: dataSafetensors(ggufview.BF16), Only: fitsSafetensors, Gen: true, Bytes: true,
		Doc: "the same, quantised tensors as BF16"},
	{Name: "sha256", Mode: 0o444, Data: dataSHA256, Gen: true, Bytes: true, Slow: true},
	{Name: "hashes.manifest", Mode: 0o444, Data: dataManifest, Gen: true, Bytes: true, Slow: true, Doc: "of the file; of tensors, for llama-gguf-hash"},
	{Name: "layout.json", Mode: 0o444, Data: dataLayout, Gen: true},
	{Name: "layout.tsv", Mode: 0o444, Data: dataTSV, Gen: true, Doc: "where every tensor lies"},
	{Name: "metadata.json", Mode: 0o444, Data: dataMetadata, Gen: true, Doc: "every key with its type"},
	{Name: "metadata", Mode: 0o555, Find: findKey, List: listKeys, Gen: true, Doc: "a file per key: string, number or JSON array"},
	{Name: "control", Mode: 0o666, Page: true, Gen: true, Only: inOneFile, Doc: "4096 shared bytes: sequence, generation, doorbell"},
	{Name: "wait", Mode: 0o444, Stream: openWait, Live: true, Quiet: true, Only: inOneFile, Doc: "read() waits for a new generation (not listed)"},
	{Name: "session", Mode: 0o666, Stream: openSession, Live: true, Quiet: true, Only: inOneFile, Doc: "open to attach; read, write ack N (not listed)"},
	{Name: "sessions", Mode: 0o555, Find: findSession, List: listSessions, Live: true, Only: inOneFile},
	{Name: "readers", Mode: 0o444, Show: showReaders, Live: true, Doc: "who is attached; who has the bytes open or mapped"},
	{Name: "history", Mode: 0o444, Show: showHistory, Live: true, Only: inOneFile},
	{Name: "policy", Mode: 0o644, Show: showPolicy, Edit: editPolicy, Live: true, Only: inOneFile, Doc: "what rollback can bring back; guards of changes"},
	{Name: "drafts", Mode: 0o777, Find: findDraft, List: listDrafts, Make: makeDraft, Drop: dropDraft, Live: true, Only: inOneFile, Doc: "mkdir one, stage changes, echo commit >ctl"},
	{Name: "tensors", Mode: 0o555, Find: findTensor, List: listTensors, Gen: true, Doc: "a directory per tensor:"},
}}

// vector_boot/models/P/metadata/KEY
var keyRow = &Row{Mode: 0o666, Data: dataValue, Edit: editKey, Xattr: keyXattrs}

// vector_boot/models/P/sessions/ID
var sessionRow = &Row{Mode: 0o444, Show: showSession, Live: true}

// vector_boot/models/P/drafts/D/
var draftRow = &Row{Mode: 0o777, Live: true, Rows: []*Row{
	{Name: "ctl", Mode: 0o666, Show: showDraftUsage, Do: doDraft, Live: true, Gate: true},
	{Name: "staged", Mode: 0o444, Show: showStaged, Live: true},
	{Name: "tensors", Mode: 0o555, Find: findDraftTensor, List: stagedNames("tensors/"), Gen: true, Live: true},
	{Name: "metadata", Mode: 0o555, Find: findDraftKey, List: stagedNames("metadata/"), Gen: true, Live: true},
}}

// vector_boot/models/P/drafts/D/metadata/KEY
var draftKeyRow = &Row{Mode: 0o666, Show: showDraftKey, Edit: editKey, Xattr: keyXattrs, Live: true}

// vector_boot/models/P/drafts/D/tensors/NAME/
var draftTensorRow = &Row{Mode: 0o555, Live: true, Rows: []*Row{
	{Name: "data", Mode: 0o666, Data: dataDraft, Edit: editData, Bytes: true, Live: true},
	{Name: "f32", Mode: 0o666, Data: dataDraftF32, Edit: editF32, Only: hasValues, Bytes: true, Live: true},
}}

// vector_boot/models/P/tensors/NAME/
var tensorRow = &Row{Mode: 0o555, Xattr: tensorXattrs, Rows: []*Row{
	{Name: "data", Mode: 0o666, Data: dataRaw, Edit: editData, Bytes: true, Doc: "the bytes as stored"},
	{Name: "type", Mode: 0o444, Show: showType},
	{Name: "shape", Mode: 0o444, Show: showShape},
	{Name: "offset", Mode: 0o444, Show: showOffset},
	{Name: "nbytes", Mode: 0o444, Show: showBytes, Doc: "one value each"},
	{Name: "info.json", Mode: 0o444, Show: showTensor, Doc: "all of that, as in layout.json"},
	{Name: "raw.npy", Mode: 0o444, Data: dataRawNpy, Bytes: true, Doc: "the stored values for numpy.load"},
	{Name: "f32.npy", Mode: 0o444, Data: dataF32Npy, Large: true, Only: hasValues, Bytes: true},
	{Name: "f32", Mode: 0o666, Data: dataF32, Large: true, Edit: editF32, Only: hasValues, Bytes: true, Doc: "the values as float32, with header or without"},
	{Name: "stats.json", Mode: 0o444, Data: dataStats, Only: hasValues, Bytes: true, Slow: true, Doc: "min, max, mean, std, zeros, histogram ..."},
}}

func init() {
	// The README lists the table that it is a row of, so it joins last.
	root.Rows[1].Rows = append([]*Row{{Name: "README", Mode: 0o444, Show: showReadme, Doc: "this text"}}, runtimeRows...)
	// A directory of models holds directories of models.
	subModels.Find, subModels.List = findModel, listModels
}

// findModel resolves one name below models/: a model, or a directory on the way to one.
func findModel(at At, name string) (*Row, At, bool) {
	p := path.Join(at.Path, name)
	at.Path = p
	if _, ok := at.RT.Info(p); ok {
		return modelRow, at, true
	}
	for _, m := range at.RT.Paths() {
		if strings.HasPrefix(m, p+"/") {
			return subModels, at, true
		}
	}
	return nil, At{}, false
}

// subModels is modelsRow without a name of its own.
var subModels = &Row{Mode: 0o555}

func listModels(at At) (names []string) {
	prefix := ""
	if at.Path != "" {
		prefix = at.Path + "/"
	}
	last := ""
	for _, m := range at.RT.Paths() {
		rest, ok := strings.CutPrefix(m, prefix)
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(rest, "/")
		if name != last {
			names, last = append(names, name), name
		}
	}
	return names
}

// inOneFile: what belongs to a segment or to a name in output/.
func inOneFile(at At) bool { return at.RT.Known(at.Path) }

// ModelNames are the fixed names in models/P.
func ModelNames() []string {
	names := make([]string, len(modelRow.Rows))
	for i, r := range modelRow.Rows {
		names[i] = r.Name
	}
	return names
}
