"""Completes a prompt with the model in argv[1], loaded by mmap, once for each line of input.

Nothing is kept between completions, and the model is loaded only once.
"""
import os
import sys

import xllamacpp as llama


def load(path):
    params = llama.CommonParams()
    params.model.path = path
    params.load_mode = llama.llama_load_mode.LLAMA_LOAD_MODE_MMAP
    params.n_ctx = 256
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.fit_params = False
    params.warmup = False
    params.verbosity = -1
    params.cpuparams.n_threads = 2
    return llama.Server(params)


def main():
    server = load(sys.argv[1])
    print("loaded", flush=True)
    for _ in sys.stdin:
        answer = server.handle_completions(
            {"prompt": "Hello world", "n_predict": 16, "temperature": 0, "seed": 1, "cache_prompt": False})
        print("completion " + repr(answer["choices"][0]["text"]), flush=True)
    os._exit(0)  # without waiting for the server's threads


main()
