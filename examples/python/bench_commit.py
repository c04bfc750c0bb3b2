#!/usr/bin/env python3
"""How long a change of one tensor takes until a process that reads the model sees it.

    python3 bench_commit.py --mount /mnt/models [--size-mib 1024] [--rounds 10]

One process changes a tensor of 1 MiB in a model of 1 GiB; another one watches it.
Measured is from just before the first write() until the reader has read the new
tensor whole: in each round once, one after the other,

    draft     commit through a draft in the mount: mkdir, write, commit, rmdir;
              until seen in a mapping, under the sequence counter
    tensor    the same with one write of tensors/NAME/data
    cp        cp of the whole changed model over the old one in /dev/shm; the reader
              cannot keep it mapped (cp truncates it: SIGBUS), so it polls with read
    gguf-py   GGUFReader reads the old model, GGUFWriter writes the new one in
              /dev/shm, a rename replaces it; needs the package gguf

It prints a JSON object with the medians in microseconds. Reading the tensor (a
MiB) is part of what is measured. It removes what it made.
"""
import argparse
import json
import mmap
import multiprocessing as mp
import os
import statistics
import struct
import subprocess
import tempfile
import time

import numpy as np

TENSOR = "watched.weight"
MIB = 1 << 20


def write_model(name, mib):
    """A GGUF with tensors of 64 MiB, and TENSOR last: a copy has it when it is complete."""
    tensors = [(f"blk.{i}.weight", 64 * MIB) for i in range((mib - 1) // 64)] + [(TENSOR, MIB)]

    def string(s):
        return struct.pack("<Q", len(s)) + s.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1)
    head += string("general.architecture") + struct.pack("<I", 8) + string("bench")
    offset = 0
    for t, size in tensors:
        head += string(t) + struct.pack("<IQIQ", 1, size // 4, 0, offset)
        offset += size
    with open(name, "wb") as f:
        f.write(head + bytes(-len(head) % 32))
        chunk = np.random.default_rng(1).random(16 * MIB, np.float32).tobytes()
        for _, size in tensors[:-1]:
            f.write(chunk[:size])
        f.write(bytes(MIB))
    return os.path.getsize(name) - MIB  # offset of TENSOR


def values(n):
    return np.full(MIB // 4, n, "<f4").tobytes()


def whole(b, want):
    return bool((np.frombuffer(b, "<f4") == want).all())


def watch_mapped(model, offset, orders, seen):
    """Waits for each ordered value in a mapping of the model, by the protocol of the control page."""
    with open(model + "/model.gguf", "rb") as f, open(model + "/control", "rb") as c:
        data = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
        words = memoryview(mmap.mmap(c.fileno(), 4096, prot=mmap.PROT_READ)).cast("Q")
    tensor = memoryview(data)[offset:offset + MIB]
    seen.put("ready")
    for want in iter(orders.get, None):
        seen.put("watching")
        while True:
            sequence = words[2]
            if sequence % 2 or np.frombuffer(tensor[-4:], "<f4")[0] != want:
                continue
            b = bytes(tensor)
            if words[2] == sequence and whole(b, want):
                break
        seen.put(time.monotonic_ns())


def watch_file(name, orders, seen):
    """Waits for each ordered value by reading the end of the file, whichever has the name now."""
    seen.put("ready")
    for want in iter(orders.get, None):
        seen.put("watching")
        while True:
            with open(name, "rb", buffering=0) as f:
                b = os.pread(f.fileno(), MIB, max(0, os.fstat(f.fileno()).st_size - MIB))
            if len(b) == MIB and whole(b, want):
                break
        seen.put(time.monotonic_ns())


class Watcher:
    """The other process."""

    def __init__(self, watch, *args):
        self.orders, self.seen = mp.SimpleQueue(), mp.SimpleQueue()
        self.process = mp.Process(target=watch, args=(*args, self.orders, self.seen), daemon=True)
        self.process.start()
        self.seen.get()

    def time(self, want, change):
        """Microseconds from the start of change() until its result is seen."""
        self.orders.put(want)
        self.seen.get()
        begin = time.monotonic_ns()
        change()
        return (self.seen.get() - begin) / 1000

    def end(self):
        self.orders.put(None)
        self.process.join()


def by_draft(model, n):
    data = values(n)

    def change():
        draft = model + "/drafts/bench"
        os.mkdir(draft)
        with open(f"{draft}/tensors/{TENSOR}/data", "wb", buffering=0) as f:
            f.write(data)
        with open(draft + "/ctl", "wb", buffering=0) as f:
            f.write(b"commit")
        os.rmdir(draft)

    return change


def by_tensor(model, n):
    data = values(n)

    def change():
        with open(f"{model}/tensors/{TENSOR}/data", "wb", buffering=0) as f:
            f.write(data)

    return change


def by_cp(changed, plain, offset, n):
    with open(changed, "r+b") as f:  # making the new version is not what is measured
        f.seek(offset)
        f.write(values(n))
    return lambda: subprocess.run(["cp", changed, plain], check=True)


def by_gguf_py(plain, n):
    import gguf  # only this row needs it

    def change():
        reader = gguf.GGUFReader(plain)
        writer = gguf.GGUFWriter(plain + ".tmp", "bench")
        for t in reader.tensors:
            writer.add_tensor(t.name, np.frombuffer(values(n), "<f4") if t.name == TENSOR else t.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.rename(plain + ".tmp", plain)

    return change


def measure(model, scratch, plain, offset, rounds, gguf_py):
    times = {"draft": [], "tensor": [], "cp": [], "gguf-py": []}
    n = 0
    for i in range(rounds):
        mapped = Watcher(watch_mapped, model, offset)
        for way, change in (("draft", by_draft), ("tensor", by_tensor)):
            n += 1
            times[way].append(mapped.time(n, change(model, n)))
        mapped.end()
        if i < max(3, rounds // 3):  # these take seconds
            n += 1
            change = by_cp(scratch, plain, offset, n)
            watcher = Watcher(watch_file, plain)
            times["cp"].append(watcher.time(n, change))
            watcher.end()
            n += 1
            if gguf_py:
                watcher = Watcher(watch_file, plain)
                times["gguf-py"].append(watcher.time(n, by_gguf_py(plain, n)))
                watcher.end()
    return times


def main():
    p = argparse.ArgumentParser(description="Measures how long a change of a tensor takes until it is seen.")
    p.add_argument("--mount", required=True)
    p.add_argument("--size-mib", type=int, default=1024)
    p.add_argument("--rounds", type=int, default=10)
    p.add_argument("--without-gguf-py", action="store_true")
    a = p.parse_args()
    out = os.path.join(a.mount, "geometry_os_v7/output/bench-commit.gguf")
    model = os.path.join(a.mount, "vector_boot/models/bench-commit.gguf")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as tmp:
        scratch, plain = tmp + "/changed.gguf", tmp + "/plain.gguf"
        offset = write_model(scratch, a.size_mib)
        try:
            subprocess.run(["cp", scratch, out], check=True)
            subprocess.run(["cp", scratch, plain], check=True)
            times = measure(model, scratch, plain, offset, a.rounds, not a.without_gguf_py)
        finally:
            if os.path.exists(out):
                os.remove(out)
    result = {way: {"median_us": round(statistics.median(t), 1), "min_us": round(min(t), 1), "max_us": round(max(t), 1),
                    "rounds": len(t)} for way, t in times.items() if t}
    for row in result.values():
        row["times_draft"] = round(row["median_us"] / result["draft"]["median_us"], 2)
    print(json.dumps({"size_mib": a.size_mib, "tensor_mib": 1, "ways": result}, indent=2))


if __name__ == "__main__":
    main()
