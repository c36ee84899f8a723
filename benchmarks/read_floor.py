"""What one kernel of many takes that does nothing but read: how near a kernel of a step can come.

    python benchmarks/read_floor.py

A chain of kernels in a CUDA graph, each of which reads memory that no cache has, is set up while
the one before it runs, and waits for its end, as kernels of a decoding step do. For each size the
best of several ways to read. Writes results/read_floor.json beside this script.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.triton.launch import after_previous, early_launch

RESULT = Path(__file__).parent / "results" / "read_floor.json"
SIZES_MIB = (0.06, 1, 4.7, 6.3, 11, 33, 66, 132, 528)
WORDS = 1 << 30  # 4 GiB, which no chain reads twice
WAYS = ((2048, 4, 528), (4096, 4, 528), (4096, 8, 264), (8192, 8, 264))  # words, warps, programs
WAYS_AT_ONCE = ((4096, 4), (8192, 4), (8192, 8), (16384, 8))  # each program reads once


@triton.jit
def _read_kernel(
    words_ptr, out_ptr, num_blocks, BLOCK: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    after_previous(EARLY)
    mixed = tl.zeros([BLOCK], tl.int32)
    for block in range(tl.program_id(0), num_blocks, tl.num_programs(0)):
        mixed ^= tl.load(words_ptr + block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK))
    tl.store(out_ptr + tl.program_id(0), tl.sum(mixed))


def microseconds(words: Tensor, size: int, block: int, warps: int, programs: int) -> float:
    """Of one kernel that reads `size` words, a multiple of `block`."""
    out = torch.empty(1 << 18, dtype=torch.int32, device=words.device)
    count = max(4, min(64, len(words) // size))

    def chain() -> None:
        for part in words[: count * size].view(count, size):
            blocks = size // block
            _read_kernel[(min(programs, blocks),)](
                part, out, blocks, BLOCK=block, num_warps=warps, **early_launch(part)
            )

    chain()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain()
    graph.replay()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
    begin.record()
    for _ in range(10):
        graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e3 / (10 * count)


def main() -> None:
    words = torch.randint(0, 1 << 30, (WORDS,), dtype=torch.int32, device="cuda")
    rows = []
    for mib in SIZES_MIB:
        times = []
        ways = [*WAYS, *((block, warps, WORDS) for block, warps in WAYS_AT_ONCE)]
        for block, warps, programs in ways:
            size = int(mib * 2**20 / 4) // block * block
            if size:
                times.append(microseconds(words, size, block, warps, programs))
        rows.append({"mib": mib, "us": round(min(times), 2)})
        rate = mib * 2**20 / min(times) / 1e6
        print(f"{mib:6} MiB {min(times):8.2f} us, {rate:.2f} TB/s", flush=True)
    document = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": rows,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
