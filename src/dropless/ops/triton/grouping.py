"""(token, choice) pairs in the order of their experts, so that a tile of rows has one expert."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.triton.launch import after_previous, early_launch

_SCANNED_PAIRS = 4096  # up to here a program for each expert looks at all pairs


@dataclass(frozen=True, slots=True)
class Grouping:
    """Pairs of experts outside 0 .. E - 1 are in no group; where they stand is not defined."""

    pairs: Tensor  # [T * top_k] int32, grouped: token * top_k + choice
    offsets: Tensor  # [EXPERTS + 1] int32: where each expert's pairs begin; EXPERTS as `padded`

    def places(self) -> Tensor:
        """[T * top_k] int32: where each pair stands in `pairs`."""
        order = torch.arange(len(self.pairs), dtype=torch.int32, device=self.pairs.device)
        return torch.empty_like(order).scatter_(0, self.pairs.long(), order)


def padded(num_experts: int) -> int:
    """How many experts a kernel ranks: a power of two, the last ones without pairs."""
    return int(triton.next_power_of_2(num_experts))


def group_pairs(topk_ids: Tensor, num_experts: int) -> Grouping:
    """The pairs of topk_ids [T, top_k], by expert and then in order."""
    ids = topk_ids.flatten()
    if len(ids) > _SCANNED_PAIRS:
        return _group_by_sorting(ids, num_experts)
    experts = padded(num_experts)
    pairs = torch.empty(len(ids), dtype=torch.int32, device=ids.device)
    offsets = torch.empty(experts + 1, dtype=torch.int32, device=ids.device)
    size = max(128, int(triton.next_power_of_2(len(ids))))
    _group_kernel[(experts,)](
        ids, pairs, offsets, len(ids), num_experts, PAIRS=size, EXPERTS=experts,
        num_warps=min(16, size // 128), **early_launch(ids),
    )  # fmt: skip
    return Grouping(pairs, offsets)


@triton.jit(do_not_specialize=["num_pairs"])
def _group_kernel(
    ids_ptr, pairs_ptr, offsets_ptr, num_pairs, num_experts,
    PAIRS: tl.constexpr, EXPERTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One expert a program, which looks at all pairs."""
    after_previous(EARLY)
    expert = tl.program_id(0)
    pairs = tl.arange(0, PAIRS)
    ids = tl.load(ids_ptr + pairs, pairs < num_pairs, num_experts).to(tl.int32)
    known = (ids >= 0) & (ids < num_experts)
    start = tl.sum((known & (ids < expert)).to(tl.int32), 0)
    own = (known & (ids == expert)).to(tl.int32)
    tl.store(pairs_ptr + start + tl.cumsum(own, 0) - 1, pairs, own > 0)
    tl.store(offsets_ptr + expert, start)
    if expert == EXPERTS - 1:
        tl.store(offsets_ptr + EXPERTS, start + tl.sum(own, 0))


def _group_by_sorting(ids: Tensor, num_experts: int) -> Grouping:
    # Few bits make few passes of the radix sort. Foreign ids become the greatest.
    narrow = torch.uint8 if num_experts < 255 else torch.int16
    known = torch.where((ids >= 0) & (ids < num_experts), ids, num_experts).to(narrow)
    ordered, pairs = known.sort(stable=True)
    bounds = torch.arange(padded(num_experts) + 1, device=ids.device).clamp_(max=num_experts)
    offsets = torch.searchsorted(ordered, bounds.to(narrow), out_int32=True)
    return Grouping(pairs.to(torch.int32), offsets)


@triton.jit
def find_tile(offsets_ptr, tile, EXPERTS: tl.constexpr, ROWS: tl.constexpr):
    """Which expert a tile of ROWS grouped pairs belongs to, its first row, and the end of the
    expert's rows. The expert is EXPERTS for a tile too many."""
    experts = tl.arange(0, EXPERTS)
    starts = tl.load(offsets_ptr + experts)
    counts = tl.load(offsets_ptr + experts + 1) - starts
    tiles_before = tl.cumsum(tl.cdiv(counts, ROWS), 0)
    expert = tl.sum((tiles_before <= tile).to(tl.int32), 0)
    is_it = experts == expert
    own_before = tl.sum(tl.where(is_it, tiles_before - tl.cdiv(counts, ROWS), 0), 0)
    start = tl.sum(tl.where(is_it, starts, 0), 0)
    stop = start + tl.sum(tl.where(is_it, counts, 0), 0)
    return expert, start + (tile - own_before) * ROWS, stop


def num_tiles(num_pairs: int, num_experts: int, rows: int) -> int:
    """At most so many tiles have pairs, however they are routed."""
    return min(num_pairs, -(-num_pairs // rows) + num_experts)
