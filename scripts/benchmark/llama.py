"""Loads the model in argv[1] with llama.cpp, by mmap, and generates a token.
Prints the seconds of both."""
import json
import os
import sys
import time

import xllamacpp as llama

params = llama.CommonParams()
params.model.path = sys.argv[1]
params.load_mode = llama.llama_load_mode.LLAMA_LOAD_MODE_MMAP
params.n_ctx = 256
params.n_parallel = 1
params.n_gpu_layers = 0
params.fit_params = False
params.warmup = False
params.no_extra_bufts = True  # weights are used where they are mapped
params.verbosity = -1
params.cpuparams.n_threads = 2

begin = time.perf_counter()
server = llama.Server(params)
loaded = time.perf_counter()
answer = server.handle_completions({"prompt": "Hello", "n_predict": 1, "temperature": 0, "cache_prompt": False})
first = time.perf_counter()
assert answer["choices"], answer
print(json.dumps({"Load": loaded - begin, "First": first - loaded}), flush=True)
os._exit(0)  # without waiting for the server's threads
