"""Maps each tensor of a model with nothing but the standard library.

usage: stdlib.py VECTOR_BOOT P FILE    FILE is what was copied in
"""
import json
import mmap
import os
import sys

boot, model, original = sys.argv[1:]
directory = os.path.join(boot, "models", model)
with open(os.path.join(directory, "layout.json")) as f:
    layout = json.load(f)
with open(original, "rb") as f:
    want = f.read()
for path in (os.path.join(directory, "model.gguf"), layout["segment"]["path"]):
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
        for t in layout["tensors"]:
            at, end = t["offset"], t["offset"] + t["nbytes"]
            if m[at:end] != want[at:end]:
                sys.exit(f"{path}: {t['name']} differs")
print(len(layout["tensors"]), "tensors")
