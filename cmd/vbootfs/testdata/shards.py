"""Compares a whole model with its shards, both as gguf-py reads them.

usage: shards.py WHOLE SHARD...

Prints one line per difference and exits with 1 if there is any.
"""
import sys

import gguf


def main():
    whole = gguf.GGUFReader(sys.argv[1])
    shards = [gguf.GGUFReader(name) for name in sys.argv[2:]]
    bad = []
    want = [t for s in shards for t in s.tensors]
    if [t.name for t in want] != [t.name for t in whole.tensors]:
        bad.append("other tensors, or another order")
    for a, b in zip(want, whole.tensors):
        if a.tensor_type != b.tensor_type or list(a.shape) != list(b.shape) or a.data.tobytes() != b.data.tobytes():
            bad.append("tensor " + a.name)
        if b.data_offset % whole.alignment:
            bad.append("alignment of " + b.name)
    keys = {k: f.contents() for k, f in whole.fields.items() if not k.startswith("GGUF.")}
    expect = {k: f.contents() for k, f in shards[0].fields.items() if not k.startswith("GGUF.")}
    expect["split.count"] = 0
    bad += ["key " + k for k in keys.keys() | expect.keys() if keys.get(k) != expect.get(k)]
    print("\n".join(bad) or f"{len(want)} tensors, {len(keys)} keys")
    sys.exit(bool(bad))


main()
