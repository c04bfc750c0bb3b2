"""Compares what a mount says about models with what gguf-py reads in the originals.

usage: oracle.py MODELS FILE...    FILE is shown as MODELS/BASENAME

Prints one line per difference and exits with 1 if there is any. Numbers are
compared bit for bit, so all of the mount's JSON numbers are taken as text.
"""
import codecs
import json
import os
import struct
import sys

import gguf

PSEUDO = 3  # fields that gguf-py makes up from the fixed header

NUMPY = {"F32": "f4", "F16": "f2", "F64": "f8", "I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8"}

# Types of ggml that gguf-py does not know yet: number, elements and bytes of a block.
NEW_TYPES = {"Q2_0": (42, 64, 18)}

# A byte that is not UTF-8 is one U+FFFD.
codecs.register_error("each", lambda e: ("\ufffd", e.start + 1))


def teach():
    """Adds NEW_TYPES to gguf-py, which refuses files with types that it does not know."""
    enum = gguf.GGMLQuantizationType
    for name, (number, elements, size) in NEW_TYPES.items():
        if name not in enum.__members__:
            member = int.__new__(enum, number)
            member._name_, member._value_ = name, number
            enum._member_map_[name] = enum._value2member_map_[number] = member
            gguf.GGML_QUANT_SIZES[member] = (elements, size)


def text_of(field, index):
    return bytes(field.parts[index]).decode("utf-8", "each")


def bits(x):
    return "NaN" if x != x else struct.pack("<d", x)


def same(kind, want, have):
    """Compares a value of gguf-py with a value of metadata.json."""
    if kind == "string":
        return want == have
    if kind == "bool":
        return bool(want) is have
    if kind.startswith("float"):
        return bits(float(want)) == bits(float(have))
    return int(want) == int(have)


def value_differs(field, shown):
    kinds = [t.name.lower() for t in field.types]
    if shown["type"] != kinds[0]:
        return f"type {shown['type']}, want {kinds[0]}"
    values = shown["value"]
    kind = kinds[-1]
    if kinds[0] == "array":
        if int(shown["count"]) != len(field.data) or len(values) != len(field.data):
            return f"count {shown['count']}, want {len(field.data)}"
        if kind != "array" and shown["array_type"] != kind:
            return f"array_type {shown['array_type']}, want {kind}"
    else:
        values = [values]
    for i, (index, have) in enumerate(zip(field.data, values, strict=True)):
        want = text_of(field, index) if kind == "string" else field.parts[index][0]
        if not same(kind, want, have):
            return f"value {i} is {have!r}, want {want!r}"
    return None


def metadata_differences(reader, shown):
    fields = list(reader.fields.values())[PSEUDO:]
    if list(shown) != [f.name for f in fields]:
        yield f"keys {list(shown)}"
        return
    for f in fields:
        if why := value_differs(f, shown[f.name]):
            yield f"{f.name}: {why}"


def numpy_dtype(name, order):
    kind = NUMPY.get(name)
    if kind is None:
        return None
    return ("|" if kind == "i1" else order) + kind


def tensor_of(t, order):
    elements, size = gguf.GGML_QUANT_SIZES[t.tensor_type]
    ne = [int(n) for n in t.shape]
    return {
        "name": t.name, "type": t.tensor_type.name, "type_id": int(t.tensor_type), "shape": ne[::-1], "ne": ne,
        "offset": int(t.data_offset), "nbytes": int(t.n_bytes), "elements": int(t.n_elements),
        "block_elements": elements, "block_bytes": size, "numpy_dtype": numpy_dtype(t.tensor_type.name, order),
    }


def layout_differences(reader, shown, path):
    big = reader.endianess == gguf.GGUFEndian.BIG
    arch = reader.fields.get("general.architecture")
    head = {
        "abi": 1, "model": os.path.basename(path), "generation": 1,
        "gguf_version": int(reader.fields["GGUF.version"].parts[0][0]), "byte_order": "big" if big else "little",
        "alignment": int(reader.alignment), "architecture": arch.contents() if arch else "",
        "file_bytes": os.path.getsize(path),
    }
    if reader.tensors:
        head["data_offset"] = int(reader.data_offset)
    for key, want in head.items():
        if shown.get(key) != want:
            yield f"{key} is {shown.get(key)!r}, want {want!r}"
    wants = [tensor_of(t, ">" if big else "<") for t in reader.tensors]
    if len(shown["tensors"]) != len(wants):
        yield f"{len(shown['tensors'])} tensors, want {len(wants)}"
    for have, want in zip(shown["tensors"], wants):
        if have != want:
            yield f"tensor {have}, want {want}"


def tsv_differences(layout, lines):
    if lines[0] != "name\ttype\tshape\toffset\tnbytes":
        yield f"layout.tsv begins with {lines[0]!r}"
    rows = [[t["name"], t["type"], "x".join(map(str, t["shape"])), str(t["offset"]), str(t["nbytes"])]
            for t in layout["tensors"]]
    if [line.split("\t") for line in lines[1:]] != rows:
        yield "layout.tsv differs from layout.json"


def read(path, **how):
    with open(path, encoding="utf-8") as f:
        return json.load(f, **how)


def differences(models, path):
    shown = os.path.join(models, os.path.basename(path))
    reader = gguf.GGUFReader(path)
    layout = read(shown + "/layout.json")
    yield from layout_differences(reader, layout, path)
    with open(shown + "/layout.tsv", encoding="utf-8") as f:
        yield from tsv_differences(layout, f.read().splitlines())
    yield from metadata_differences(reader, read(shown + "/metadata.json", parse_int=str, parse_float=str))


def main():
    teach()
    bad = 0
    for path in sys.argv[2:]:
        for line in differences(sys.argv[1], path):
            print(f"{os.path.basename(path)}: {line}")
            bad += 1
    print(f"{len(sys.argv) - 2} files compared, {bad} differences")
    sys.exit(bad > 0)


main()
