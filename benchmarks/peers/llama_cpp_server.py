"""llama.cpp's own HTTP server in this process, until standard input closes.

Arguments: GGUF file, threads, slots (parallel sequences), tokens per slot. Prints its address as
one line of JSON.
"""

from __future__ import annotations

import json
import sys

import xllamacpp


def main(gguf: str, threads: int, slots: int, slot_tokens: int) -> None:
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.n_parallel = slots
    params.n_ctx = slots * slot_tokens
    params.cont_batching = True
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.verbosity = 0
    server = xllamacpp.Server(params)
    print(json.dumps({"url": server.listening_address}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
