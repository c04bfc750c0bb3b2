"""A brain that stops in the middle of a draft. argv: the draft to make, a whole tensor, half a tensor."""
import os
import sys

draft, whole, half = sys.argv[1:]
os.mkdir(draft)
with open(f"{draft}/tensors/{whole}/data", "r+b") as f:
    f.write(bytes(os.fstat(f.fileno()).st_size))
f = open(f"{draft}/tensors/{half}/data", "r+b", buffering=0)
f.write(bytes(os.fstat(f.fileno()).st_size // 2))
print("half", flush=True)
sys.stdin.read()
