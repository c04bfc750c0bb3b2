"""Compare the views of loaded models with what other readers make of the files.

usage: views_oracle.py MOUNT FILE...

Each FILE is loaded already, under its own base name. gguf-py reads the original
and dequantises it; NumPy and safetensors read the views of the mount. Prints a
line per model and stops at the first difference.
"""
import hashlib
import json
import os
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFReader
from gguf import GGMLQuantizationType as Q
from gguf.quants import dequantize
from safetensors import safe_open



def teach(name, value, block, size):
    """Let gguf-py read a type that ggml has and this release of gguf-py has not."""
    if value not in Q._value2member_map_:
        t = int.__new__(Q, value)
        t._name_, t._value_ = name, value
        Q._member_map_[name] = Q._value2member_map_[value] = t
        GGML_QUANT_SIZES[t] = block, size


teach("Q1_0", 41, 128, 18)
teach("Q2_0", 42, 64, 18)
INTEGERS = {Q.I8: "i1", Q.I16: "i2", Q.I32: "i4", Q.I64: "i8"}
NATIVE = {Q.F64: "F64", Q.F32: "F32", Q.F16: "F16", Q.BF16: "BF16", Q.I8: "I8", Q.I16: "I16", Q.I32: "I32", Q.I64: "I64"}
# Words that a big-endian file stores the other way round where gguf-py takes a
# block for bytes: (bytes of a block, [(offset, width, count)]). From ggml-common.h.
SWAPS = {Q.BF16: (2, [(0, 2, 1)]), Q.Q8_0: (34, [(0, 2, 1)]), Q.Q4_0: (18, [(0, 2, 1)]),
         Q.Q4_K: (144, [(0, 2, 2)]), Q.Q6_K: (210, [(208, 2, 1)])}


def file_name(name):
    """The name of a tensor or key as a file: see INTERFACE.md."""
    if name == "":
        return "%"
    if name in (".", ".."):
        return name.replace(".", "%2E")
    full = name.replace("%", "%25").replace("/", "%2F").replace("\0", "%00").encode()
    if len(full) <= 255:
        return full.decode()
    raise SystemExit(f"no rule here for the long name {name!r}")


def little(t, big):
    """The stored bytes of a tensor, as gguf-py shapes them, low byte first."""
    a = np.ascontiguousarray(t.data)
    if not big:
        return a
    if a.dtype != np.uint8:
        return a.astype(a.dtype.newbyteorder("<"))
    size, words = SWAPS[t.tensor_type]
    blocks = a.reshape(-1, size).copy()
    for off, width, count in words:
        part = blocks[:, off:off + width * count].reshape(-1, count, width)
        blocks[:, off:off + width * count] = part[:, :, ::-1].reshape(-1, width * count)
    return blocks.reshape(a.shape)


def values(t, big):
    """float32 as gguf-py computes them; None where it has no dequantiser."""
    a = little(t, big)
    if a.dtype != np.uint8 or t.tensor_type in INTEGERS:
        return a.astype("<f4")
    try:
        return dequantize(a, t.tensor_type)
    except NotImplementedError:
        return None


def bf16(x):
    """Round float32 to bfloat16 to nearest even, as 16-bit integers."""
    u = x.view("<u4").astype("u8")
    r = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype("<u2")
    return np.where(np.isnan(x), ((u >> 16) | 64).astype("<u2"), r)


def same(what, got, want):
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or got.tobytes() != want.tobytes():
        raise SystemExit(f"{what}: {got.dtype}{got.shape} differs from {want.dtype}{want.shape}")


def text(path):
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as f:
        return f.read()


def tensor_bytes(path):
    """Every tensor of a safetensors file as (dtype, shape, bytes), past the library: it has no BF16 for NumPy."""
    with open(path, "rb") as f:
        b = f.read()
    n = int.from_bytes(b[:8], "little")
    head = json.loads(b[8:8 + n])
    return {k: (v["dtype"], v["shape"], b[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]])
            for k, v in head.items() if k != "__metadata__"}


def check_tensor(where, path, t, big, st, st16):
    d = f"{where}/tensors/{file_name(t.name)}"
    with open(path, "rb") as f:
        f.seek(t.data_offset)
        raw = f.read(t.n_bytes)
    shape = [int(n) for n in reversed(t.shape)]
    for name, want in {"type": t.tensor_type.name, "shape": " ".join(map(str, shape)),
                       "offset": str(t.data_offset), "nbytes": str(t.n_bytes)}.items():
        if text(f"{d}/{name}") != want + "\n":
            raise SystemExit(f"{d}/{name} is {text(f'{d}/{name}')!r}, want {want!r}")
    if json.loads(text(f"{d}/info.json"))["shape"] != shape:
        raise SystemExit(f"{d}/info.json has another shape")
    with open(f"{d}/data", "rb") as f:
        same(f"{d}/data", np.frombuffer(f.read(), "u1"), np.frombuffer(raw, "u1"))
    for mode in (None, "r"):
        same(f"{d}/raw.npy ({mode})", np.frombuffer(np.load(f"{d}/raw.npy", mmap_mode=mode).tobytes(), "u1"), np.frombuffer(raw, "u1"))
    want = values(t, big)
    dtype, st_shape, st_bytes = st[t.name]
    if want is None:
        return False
    want = want.reshape(shape)
    for mode in (None, "r"):
        got = np.load(f"{d}/f32.npy", mmap_mode=mode)
        if got.dtype != np.dtype("<f4"):
            raise SystemExit(f"{d}/f32.npy is {got.dtype}")
        same(f"{d}/f32.npy ({mode})", got, want)
    same(f"{d}/f32", np.fromfile(f"{d}/f32", "<f4"), want.ravel())
    native = NATIVE.get(t.tensor_type)
    if (dtype, st_shape) != (native or "F32", shape) or st16[t.name][0] != (native or "BF16"):
        raise SystemExit(f"{where}: safetensors has {t.name} as {dtype} {st_shape} and {st16[t.name][0]}")
    stored = little(t, big) if native else want
    same(f"{where}: {t.name} in safetensors", np.frombuffer(st_bytes, "u1"), np.frombuffer(stored.tobytes(), "u1"))
    stored = stored if native else bf16(want)
    same(f"{where}: {t.name} in bf16.safetensors", np.frombuffer(st16[t.name][2], "u1"), np.frombuffer(stored.tobytes(), "u1"))
    check_stats(d, want)
    return True


def check_stats(d, want):
    s = json.loads(text(f"{d}/stats.json"))
    v = want.astype("f8").ravel()
    finite = v[np.isfinite(v)]
    exact = {"count": v.size, "nan": int(np.isnan(v).sum()), "inf": int(np.isinf(v).sum()), "zeros": int((v == 0).sum())}
    if finite.size:
        exact |= {"min": finite.min(), "max": finite.max()}
        for key, x in (("mean", finite.mean()), ("std", finite.std())):
            if not np.isclose(s[key], x, rtol=1e-6, atol=1e-12):
                raise SystemExit(f"{d}/stats.json: {key} is {s[key]}, want {x}")
        if sum(s["histogram"]["counts"]) != finite.size:
            raise SystemExit(f"{d}/stats.json: the histogram does not count every value")
    for key, x in exact.items():
        if s[key] != x:
            raise SystemExit(f"{d}/stats.json: {key} is {s[key]}, want {x}")


def check_metadata(where, reader):
    names = set()
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        names.add(file_name(key))
        path = f"{where}/metadata/{file_name(key)}"
        kind = field.types[0].name.lower()
        if kind == "array":
            got, want = json.loads(text(path)), field.contents()
            if field.types[-1].name == "STRING":
                want = [bytes(field.parts[i]).decode("utf-8", "replace") for i in field.data]
            ok = len(got) == len(want) and all(number(a, b) for a, b in zip(got, want))
        elif kind == "string":
            with open(path, "rb") as f:
                ok = f.read() == bytes(field.parts[field.data[0]])
        elif kind == "bool":
            ok = text(path) == ("true\n" if field.contents() else "false\n")
        else:
            ok = number(text(path)[:-1], field.contents())
        if not ok:
            raise SystemExit(f"{path} is {text(path)[:60]!r}")
        xattr = os.getxattr(path, "user.gguf.type").decode()
        if not xattr.startswith(kind):
            raise SystemExit(f"{path} has the type {xattr}, want {kind}")
    if names != set(os.listdir(f"{where}/metadata")):
        raise SystemExit(f"{where}/metadata has other names")


def number(a, b):
    """Whether text or JSON equals a number or string."""
    if isinstance(b, str):
        return a == b
    if isinstance(b, bool):
        return a is b
    a = float(a) if isinstance(b, float) else int(a)
    return a == b or a != a and b != b


def check_manifest(where, path, reader):
    got, want = text(f"{where}/hashes.manifest").split("\n"), []
    whole = hashlib.sha256()
    with open(path, "rb") as f:
        for t in reader.tensors:
            f.seek(t.data_offset)
            b = f.read(t.n_bytes)
            whole.update(b)
            want.append(f"sha256    {hashlib.sha256(b).hexdigest()}  model.gguf:{t.name}")
    want.append(f"sha256    {whole.hexdigest()}  model.gguf")
    if got[1::2] != want or not all(line.startswith("xxh64     ") for line in got[:-1:2]):
        raise SystemExit(f"{where}/hashes.manifest is wrong")


def check(mount, path):
    where = f"{mount}/vector_boot/models/{os.path.basename(path)}"
    reader = GGUFReader(path)
    big = reader.endianess.name == "BIG"
    st, st16 = tensor_bytes(f"{where}/model.safetensors"), tensor_bytes(f"{where}/model.bf16.safetensors")
    known = sum(check_tensor(where, path, t, big, st, st16) for t in reader.tensors)
    with safe_open(f"{where}/model.safetensors", framework="np") as f:
        if set(f.keys()) != {t.name for t in reader.tensors}:
            raise SystemExit(f"{where}/model.safetensors has other tensors")
        for t in reader.tensors:
            if t.tensor_type == Q.BF16:
                continue  # NumPy has none
            same(f"safe_open {t.name}", np.frombuffer(f.get_tensor(t.name).tobytes(), "u1"), np.frombuffer(st[t.name][2], "u1"))
    check_metadata(where, reader)
    check_manifest(where, path, reader)
    if set(os.listdir(f"{where}/tensors")) != {file_name(t.name) for t in reader.tensors}:
        raise SystemExit(f"{where}/tensors has other names")
    print(f"{os.path.basename(path)}: {len(reader.tensors)} tensors equal, {known} of them as float32 too")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    for name in sys.argv[2:]:
        check(sys.argv[1], name)
