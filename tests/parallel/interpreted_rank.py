"""The program of a rank in Triton's interpreter: its arena, and the others', are files."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dropless.ops.moe import ExpertOutputs
from dropless.ops.norm import layer_norm, rms_norm
from dropless.ops.triton.all_reduce import ARENA_BYTES, Ring, all_reduce_, all_reduce_norm
from dropless.parallel.group import Norm

from .one_shot_checks import (
    norm_holds,
    norm_of_experts_holds,
    parts_of,
    rounds,
    sum_in_rank_order,
)
from .team import CPU

DTYPES = (torch.float32, torch.float16)  # the interpreter cuts bfloat16s instead of rounding


def interpreted_rank(rank: int, size: int, folder: Path) -> None:
    """Sums with the other ranks, and at last some for which nobody comes."""
    files = [(folder / f"arena-{peer}").open("r+b") for peer in range(size)]
    arenas = [np.frombuffer(mmap.mmap(file.fileno(), ARENA_BYTES), np.uint8) for file in files]
    addresses = tuple(arena.ctypes.data for arena in arenas)
    broken = torch.zeros(1, dtype=torch.int32)
    ring = Ring(addresses, addresses[rank], broken, patience=1_000_000)

    def sum_norm(
        norm: Norm, x: Tensor | ExpertOutputs, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        return all_reduce_norm(x, residual, weight, eps, ring, centred=norm is layer_norm)

    for i, parts in enumerate(rounds(16, size, 20_000, DTYPES)):
        x = parts[rank].clone()
        assert torch.equal(all_reduce_(x, ring), sum_in_rank_order(parts)), (i, parts.dtype)
        if i % 4 == 0:
            rows = parts_of(i, size, 1 + i % 3, 600 + i, dtype=DTYPES[i // 4 % 2])
            norm = (layer_norm, rms_norm)[i // 8]
            norm_holds(sum_norm, norm, rows, rank, CPU)
            rows = parts_of(i, size, 2 * (1 + i % 3), 600 + i, dtype=DTYPES[i // 4 % 2])
            norm_of_experts_holds(sum_norm, norm, rows, rank, CPU)
    assert broken.item() == 0
    if rank == 0:  # one more, for which nobody comes
        all_reduce_(torch.ones(3), Ring(addresses, addresses[0], broken, patience=50))
        assert broken.item() == 1
        all_reduce_(torch.ones(3), ring)  # gives up at the first look, long before its patience


if __name__ == "__main__":
    interpreted_rank(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
