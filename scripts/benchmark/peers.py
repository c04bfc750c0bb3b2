"""Does what each line of the input says, a JSON list of a name and arguments, and
answers with the seconds that it took."""
import contextlib
import ctypes
import functools
import glob
import json
import os
import shutil
import sys
import time

import gguf
import numpy as np


class InitParams(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


@functools.cache
def ggml():
    """The ggml that xllamacpp carries."""
    import xllamacpp
    lib = ctypes.CDLL(glob.glob(os.path.join(os.path.dirname(xllamacpp.__file__), "xllamacpp*.so"))[0])
    lib.gguf_init_from_file.restype = ctypes.c_void_p
    lib.gguf_init_from_file.argtypes = [ctypes.c_char_p, InitParams]
    lib.gguf_free.argtypes = [ctypes.c_void_p]
    return lib


@contextlib.contextmanager
def clock():
    begin = time.perf_counter()
    yield
    clock.seconds = time.perf_counter() - begin


def copyfile(src, dst):
    with clock():
        shutil.copyfile(src, dst)


def gguf_init(*paths):
    """Without a ggml context: only the tables, which is the least that it can do."""
    lib = ggml()
    made = []
    with clock():
        for p in paths:
            made.append(lib.gguf_init_from_file(p.encode(), InitParams(True, None)))
    for p in made:
        if not p:
            raise OSError("gguf_init_from_file refuses the file")
        lib.gguf_free(p)


def gguf_reader(*paths):
    with clock():
        for p in paths:
            gguf.GGUFReader(p)


@functools.cache
def tensor(path, name):
    return next(t for t in gguf.GGUFReader(path).tensors if t.name == name)


def dequantize(path, name):
    t = tensor(path, name)
    with clock():
        gguf.dequantize(t.data, t.tensor_type)


@functools.cache
def floats(count):
    return np.ones(count, np.float32)


def ggml_dequantize(path, name, function):
    """One thread, into memory that is there already."""
    t = tensor(path, name)
    f = getattr(ggml(), function)
    f.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    f.restype = None
    count = int(t.n_elements)
    out = floats(count)
    with clock():
        f(t.data.ctypes.data, out.ctypes.data, count)


OPERATIONS = {f.__name__: f for f in [copyfile, gguf_init, gguf_reader, dequantize, ggml_dequantize]}

answers = os.fdopen(os.dup(1), "w", buffering=1)  # what libraries print goes elsewhere
os.dup2(2, 1)
try:
    for line in sys.stdin:
        name, *args = json.loads(line)
        try:
            OPERATIONS[name](*args)
            answers.write(json.dumps({"Seconds": clock.seconds}) + "\n")
        except Exception as e:
            answers.write(json.dumps({"Error": f"{type(e).__name__}: {e}"}) + "\n")
except KeyboardInterrupt:
    pass
