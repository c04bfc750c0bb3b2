"""Prints what gguf-py finds in a model: a line per tensor, as examples/design.rs does."""
import sys

import gguf
import numpy as np

for t in gguf.GGUFReader(sys.argv[1]).tensors:
    shape = "x".join(str(n) for n in reversed(t.shape.tolist()))
    total = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64).sum()
    print(t.name, t.tensor_type.name, shape, t.data_offset, t.n_bytes, f"{total:.6f}", sep="\t")
