"""Copies argv[1] to argv[2] as llama-quantize writes: zeros, data, header last."""
import sys

with open(sys.argv[1], "rb") as f:
    data = f.read()
head = min(4096, len(data) // 2)
with open(sys.argv[2], "wb", buffering=8191) as f:
    f.write(bytes(head))
    f.write(data[head:])
    f.seek(0)
    f.write(data[:head])
