"""Prints what llama.cpp generates with the model in argv[1], loaded by mmap."""
import os
import sys

import xllamacpp as llama


def fill(params, path):
    params.model.path = path
    params.load_mode = llama.llama_load_mode.LLAMA_LOAD_MODE_MMAP
    params.n_ctx = 256
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.fit_params = False
    params.warmup = False
    params.verbosity = -1
    params.cpuparams.n_threads = 2
    return params


def main():
    path = sys.argv[1]
    server = llama.Server(fill(llama.CommonParams(), path))
    answer = server.handle_completions(
        {"prompt": "Hello world", "n_predict": 16, "temperature": 0, "seed": 1, "cache_prompt": False})
    with open("/proc/self/maps") as maps:
        mapped = any(line.rstrip().endswith(os.path.basename(path)) for line in maps)
    print("mapped" if mapped else "not mapped")
    print(repr(answer["choices"][0]["text"]), flush=True)
    os._exit(0)  # without waiting for the server's threads


main()
