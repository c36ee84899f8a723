"""(token, choice) pairs in the order of their experts, so that a tile of rows has one expert."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.moe import Grouping
from dropless.ops.triton.launch import after_previous, early_launch

_SCANNED_PAIRS = 4096  # up to here a program for each expert looks at all pairs
_COUNTED_PAIRS = 256  # beyond, of one program, which looks at its own only
_MOST_COUNTS = 128  # programs, each of which adds up what the others have counted


def padded(num_experts: int) -> int:
    """How many experts a kernel ranks: a power of two, the last ones without pairs."""
    return int(triton.next_power_of_2(num_experts))


def empty_grouping(num_pairs: int, num_experts: int, device: torch.device) -> Grouping:
    """Room for a grouping, whose content is not defined."""

    def empty(size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int32, device=device)

    return Grouping(empty(num_pairs), empty(num_pairs), empty(padded(num_experts) + 1))


def group_pairs(topk_ids: Tensor, num_experts: int) -> Grouping:
    """The pairs of topk_ids [T, top_k], by expert and then in order."""
    ids = topk_ids.flatten()
    num_pairs, experts = len(ids), padded(num_experts)
    grouping = empty_grouping(num_pairs, num_experts, ids.device)
    found = (grouping.pairs, grouping.places, grouping.offsets)
    sizes: dict[str, int] = {"EXPERTS": experts, **early_launch(ids)}
    if num_pairs <= _SCANNED_PAIRS:
        size = max(128, int(triton.next_power_of_2(num_pairs)))
        _group_kernel[(experts,)](
            ids, *found, num_pairs, num_experts, PAIRS=size, num_warps=min(16, size // 128), **sizes
        )
        return grouping
    size = max(_COUNTED_PAIRS, int(triton.next_power_of_2(triton.cdiv(num_pairs, _MOST_COUNTS))))
    programs = triton.cdiv(num_pairs, size)
    counts = torch.empty(programs, experts, dtype=torch.int32, device=ids.device)
    _count_kernel[(programs,)](ids, counts, num_pairs, num_experts, PAIRS=size, **sizes)
    _place_kernel[(programs,)](
        ids, counts, *found, num_pairs, num_experts, PAIRS=size,
        PROGRAMS=int(triton.next_power_of_2(programs)), **sizes,
    )  # fmt: skip
    return grouping


@triton.jit(do_not_specialize=["num_pairs"])
def _group_kernel(
    ids_ptr, pairs_ptr, places_ptr, offsets_ptr, num_pairs, num_experts,
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
    places = start + tl.cumsum(own, 0) - 1
    tl.store(pairs_ptr + places, pairs, own > 0)
    tl.store(places_ptr + pairs, places, own > 0)
    tl.store(offsets_ptr + expert, start)
    if expert == EXPERTS - 1:
        tl.store(offsets_ptr + EXPERTS, start + tl.sum(own, 0))


@triton.jit
def group_choices(
    ranks, num_tokens, pairs_ptr, places_ptr, offsets_ptr,
    TOP_K: tl.constexpr, TOKENS: tl.constexpr, EXPERTS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Stores the grouping of all pairs by GROUPS experts, known from the ranks [TOKENS, EXPERTS] of
    the experts of every token, at most 32. An expert's tokens are the bits of one number."""
    tokens, experts = tl.arange(0, TOKENS)[:, None], tl.arange(0, EXPERTS)[None, :]
    chosen = (ranks < TOP_K) & (tokens < num_tokens)
    bits = tl.sum(chosen.to(tl.uint32) << tokens.to(tl.uint32), 0)
    bits = tl.broadcast_to(bits[None, :], ranks.shape)
    counts = _number_of_ones(bits)
    starts = tl.cumsum(counts, 1) - counts
    earlier = (tl.full(tokens.shape, 1, tl.uint32) << tokens.to(tl.uint32)) - 1
    places = starts + _number_of_ones(bits & earlier)
    pairs = tokens * TOP_K + ranks
    scatter(pairs_ptr + places, pairs, chosen)
    scatter(places_ptr + pairs, places, chosen)
    offsets_at = offsets_ptr + tl.broadcast_to(experts, ranks.shape)
    scatter(offsets_at, starts, (experts < GROUPS) & (tokens == 0))
    tl.store(offsets_ptr + GROUPS, num_tokens * TOP_K)


@triton.jit
def scatter(at, values, wanted):
    """Stores [rows, columns] whose columns are side by side in a warp. Where addresses have no
    order Triton wants the first axis there, and would move all through shared memory."""
    tl.store(tl.trans(at), tl.trans(values), tl.trans(wanted))


@triton.jit
def _number_of_ones(bits):
    """Of a uint32, as int32. LLVM knows the form and makes one instruction of it."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    return ((bits * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _store_places(chosen, first_pair, before, pairs_ptr, places_ptr, PAIRS: tl.constexpr):
    """Of PAIRS pairs, `before` which [EXPERTS] pairs stand of smaller experts and of their own."""
    places = tl.sum(chosen * (before[None, :] + tl.cumsum(chosen, 0) - 1), 1)
    is_known = tl.sum(chosen, 1) > 0
    pairs = first_pair + tl.arange(0, PAIRS)
    tl.store(pairs_ptr + places, pairs, is_known)
    tl.store(places_ptr + pairs, places, is_known)


@triton.jit
def _choices(
    ids_ptr, first_pair, num_pairs, num_experts, PAIRS: tl.constexpr, EXPERTS: tl.constexpr
):
    """[PAIRS, EXPERTS] int32: 1 where a pair is for the expert."""
    pairs = first_pair + tl.arange(0, PAIRS)
    ids = tl.load(ids_ptr + pairs, pairs < num_pairs, num_experts).to(tl.int32)
    known = (ids >= 0) & (ids < num_experts)
    return (known[:, None] & (ids[:, None] == tl.arange(0, EXPERTS)[None, :])).to(tl.int32)


@triton.jit(do_not_specialize=["num_pairs"])
def _count_kernel(
    ids_ptr, counts_ptr, num_pairs, num_experts,
    PAIRS: tl.constexpr, EXPERTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    after_previous(EARLY)
    first = tl.program_id(0) * PAIRS
    counts = tl.sum(_choices(ids_ptr, first, num_pairs, num_experts, PAIRS, EXPERTS), 0)
    tl.store(counts_ptr + tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS), counts)


@triton.jit(do_not_specialize=["num_pairs"])
def _place_kernel(
    ids_ptr, counts_ptr, pairs_ptr, places_ptr, offsets_ptr, num_pairs, num_experts,
    PAIRS: tl.constexpr, PROGRAMS: tl.constexpr, EXPERTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A pair stands behind those of smaller experts, and those of its expert before it."""
    after_previous(EARLY)
    own, experts = tl.program_id(0), tl.arange(0, EXPERTS)
    programs = tl.arange(0, PROGRAMS)[:, None]
    at = counts_ptr + programs * EXPERTS + experts[None, :]
    counts = tl.load(at, programs < tl.num_programs(0), 0)
    totals = tl.sum(counts, 0)
    starts = tl.cumsum(totals, 0) - totals
    before = starts + tl.sum(tl.where(programs < own, counts, 0), 0)
    chosen = _choices(ids_ptr, own * PAIRS, num_pairs, num_experts, PAIRS, EXPERTS)
    _store_places(chosen, own * PAIRS, before, pairs_ptr, places_ptr, PAIRS)
    if own == 0:
        tl.store(offsets_ptr + experts, starts)
        tl.store(offsets_ptr + EXPERTS, tl.sum(totals, 0))


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
