"""What this machine can do at best, measured: reading memory and multiplying matrices.

Arguments: bytes to read, threads. Prints one line of JSON: `read_gb_s`, how fast that many bytes
are read again and again (as decoding reads the weights), and `matmul_tflop_s` by number format,
at the size of a small model's feed-forward layer with 512 tokens.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch

TOKENS, WIDTH = 512, 1536


def best_seconds(work: Callable[[], object], repeats: int = 30) -> float:
    """The fastest of several: a limit is what the machine can do when nothing is in the way."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main(size: int, threads: int) -> None:
    torch.set_num_threads(threads)
    buffer = torch.ones(size // 4)
    left, right = torch.randn(TOKENS, WIDTH), torch.randn(WIDTH, WIDTH)
    floats = (torch.float32, torch.bfloat16)
    pairs = {str(kind).removeprefix("torch."): (left.to(kind), right.to(kind)) for kind in floats}
    rates = {name: best_seconds(lambda p=pair: p[0] @ p[1]) for name, pair in pairs.items()}
    bytes_left, bytes_right = left.to(torch.int8), right.to(torch.int8)
    rates["int8"] = best_seconds(lambda: torch._int_mm(bytes_left, bytes_right))
    operations = 2 * TOKENS * WIDTH * WIDTH
    limits = {
        "read_gb_s": size / best_seconds(buffer.sum) / 1e9,
        "matmul_tflop_s": {name: operations / seconds / 1e12 for name, seconds in rates.items()},
    }
    print(json.dumps(limits), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
