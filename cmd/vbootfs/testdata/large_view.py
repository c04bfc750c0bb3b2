"""Reads a large view in every way and compares it with NumPy. Arguments: output/, vector_boot, a directory for files."""
import mmap
import os
import shutil
import sys

import gguf
import numpy as np

out, boot, scratch = sys.argv[1:]
values = np.random.default_rng(1).standard_normal((1 << 10, 2 << 10), dtype=np.float32).astype(np.float16)
w = gguf.GGUFWriter(f"{scratch}/large.gguf", "llama")
w.add_tensor("w", values)
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
shutil.copy(f"{scratch}/large.gguf", f"{out}/large.gguf")

tensor = f"{boot}/models/large.gguf/tensors/w"
want = values.astype(np.float32)
assert want.nbytes > 4 << 20, "not large enough to be read past the page cache"
for mode in (None, "r", "c"):
    have = np.load(f"{tensor}/f32.npy", mmap_mode=mode)
    assert np.array_equal(have, want), mode

raw = want.tobytes()
fd = os.open(f"{tensor}/f32", os.O_RDONLY)
shared = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)  # stays while the others read
for off, size in ((0, 1), (4093, 8195), (len(raw) - 5, 100), (len(raw), 1), (1 << 20, 3 << 20)):
    assert os.pread(fd, size, off) == raw[off:off + size], (off, size)
    assert shared[off:off + size] == raw[off:off + size], (off, size)
shutil.copy(f"{tensor}/f32", f"{scratch}/copy")
assert open(f"{scratch}/copy", "rb").read() == raw
