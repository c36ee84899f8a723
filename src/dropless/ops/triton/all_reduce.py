"""Sums over the ranks of one host, for small tensors: every rank reads the parts of all others
from their memory and adds them up itself. One kernel, with the residual and the norm if wanted.

Each rank has `ARENA_BYTES` that all ranks can address, zero at first: two halves of `SLOTS` slots,
then a count of arrivals for each slot. Program b of every rank uses slot b alone, whatever the
tensor's size and the kernel, and waits for the programs b of the others only. A round of slot b:

1. write our part into the slot, in the half that is this round's turn;
2. add 1 to count b of every rank, our own included; wait until ours says that all have done so;
3. read the slot of every rank and add the parts up, in rank order: the same bits everywhere.

The count needs no reset and is the number of the round: when r rounds are done on R ranks, a rank
finds between r * R and r * R + R - 1 before it has arrived itself, since nobody can leave the next
round without it. For the same reason a count of (r + 1) * R says that all have arrived: either each
did so once, or one is a round ahead, and then it (or one before it) saw all of them arrive.

Two halves are enough: who writes into a half again has left the round in between, so all others
have arrived in that one, and before that they had read all of what is now overwritten. A rank
calls the kernels on one stream, one after another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.moe import ExpertOutputs
from dropless.ops.triton.combine import operands_of, row_or_sum
from dropless.ops.triton.launch import after_previous, early_launch, warps_of_row
from dropless.ops.triton.norm import norm_of, stream_with

SLOTS = 256
SLOT_BYTES = 16 * 1024
HALF_BYTES = SLOTS * SLOT_BYTES
_COUNT_STRIDE = 128  # bytes: no two counts in a cache line
ARENA_BYTES = 2 * HALF_BYTES + SLOTS * _COUNT_STRIDE

GAVE_UP = 1  # in `Ring.broken`: a kernel stopped waiting, and what it wrote is not the sum

_SLOT_BYTES = tl.constexpr(SLOT_BYTES)
_HALF_BYTES = tl.constexpr(HALF_BYTES)
_STRIDE = tl.constexpr(_COUNT_STRIDE)
_GAVE_UP = tl.constexpr(GAVE_UP)
_LOOK_UP = tl.constexpr(1024)  # polls between two looks at `broken`, which is far away

_PROGRAM_BYTES = 4096  # 16 for each of 256 threads


@dataclass(frozen=True, slots=True)
class Ring:
    """What the kernels of one rank work with.

    `arenas` are the addresses of every rank's arena as this process sees them, in rank order; `own`
    is this rank's. `broken` [1] int32 in pinned memory of the host is 0 while all is well. A
    kernel that finds it set, or has looked `patience` times in vain, stops waiting and sets it.
    """

    arenas: tuple[int, ...]
    own: int
    broken: Tensor
    patience: int


@triton.jit
def _sum_over_ranks(part, offsets, inside, arenas, own, broken_ptr, patience, RANKS: tl.constexpr):
    """One round of this program's slot: the float32 sum of every rank's `part`."""
    slot = tl.program_id(0).to(tl.int64)
    count_at = 2 * _HALF_BYTES + slot * _STRIDE
    count_ptr = (own + count_at).to(tl.pointer_type(tl.int64))
    rounds = tl.load(count_ptr, volatile=True) // RANKS
    slot_at = (rounds % 2) * _HALF_BYTES + slot * _SLOT_BYTES

    tl.store(_pointer(own + slot_at, part.dtype) + offsets, part, inside)
    tl.debug_barrier()  # all threads have written before one of them says so
    _arrive(arenas, count_at, RANKS)
    count = _wait(count_ptr, (rounds + 1) * RANKS, broken_ptr, patience)
    tl.debug_barrier()  # no thread reads before the one that waited has seen all arrive
    if count < (rounds + 1) * RANKS:
        tl.store(broken_ptr, _GAVE_UP)

    total = tl.zeros(part.shape, tl.float32)
    for rank in tl.static_range(RANKS):
        theirs = _pointer(arenas[rank] + slot_at, part.dtype) + offsets
        # Volatile, or what was there two rounds ago might be taken from a cache.
        total += tl.load(theirs, inside, 0.0, volatile=True).to(tl.float32)
    return total


@triton.jit
def _pointer(slot_address, dtype: tl.constexpr):
    return tl.multiple_of(slot_address.to(tl.pointer_type(dtype)), 16)


@triton.jit
def _arrive(arenas, count_at, RANKS: tl.constexpr):
    """Adds 1 to the count of every rank, one thread each: a release waits for what was written, and
    they wait together."""
    ranks = tl.arange(0, triton.next_power_of_2(RANKS))
    counts = tl.zeros(ranks.shape, tl.int64) + count_at
    for rank in tl.static_range(RANKS):
        counts += tl.where(ranks == rank, arenas[rank], 0)
    pointers = counts.to(tl.pointer_type(tl.int64))
    tl.atomic_add(pointers, 1, ranks < RANKS, sem="release", scope="sys")


@triton.jit
def _wait(count_ptr, goal, broken_ptr, patience):
    """Returns the count when it has reached the goal, or less when it is given up."""
    polls = tl.full((), 0, tl.int64)
    count = tl.atomic_add(count_ptr, 0, sem="acquire", scope="sys")
    while (count < goal) & (polls < patience):
        polls += 1
        if polls % _LOOK_UP == 0:
            # Read by one thread for all: they must not leave the loop at different times.
            broken = tl.atomic_add(broken_ptr, 0, sem="acquire", scope="sys")
            polls = tl.where(broken != 0, patience, polls)
        count = tl.atomic_add(count_ptr, 0, sem="acquire", scope="sys")
    return count


@triton.jit
def _all_reduce_kernel(
    x_ptr, numel, arenas, own, broken_ptr, patience,
    RANKS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A piece of BLOCK elements a program, in place."""
    after_previous(EARLY)
    offsets = tl.arange(0, BLOCK)
    at = tl.program_id(0) * BLOCK + offsets
    inside = at < numel
    part = tl.load(x_ptr + at, inside, 0.0)
    total = _sum_over_ranks(part, offsets, inside, arenas, own, broken_ptr, patience, RANKS)
    tl.store(x_ptr + at, total.to(part.dtype), inside)


@triton.jit
def _all_reduce_norm_kernel(
    x_ptr, topk_weights_ptr, ids_ptr, residual_ptr, weight_ptr, normed_ptr, summed_ptr, hidden,
    num_experts, eps, arenas, own, broken_ptr, patience,
    RANKS: tl.constexpr, TOP_K: tl.constexpr, CENTRED: tl.constexpr, BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """One token a program. With TOP_K, x is what the token's experts made, in the order of pairs.
    What is read of our own is read before the wait for others."""
    token = tl.program_id(0)
    row = token.to(tl.int64) * hidden
    columns = tl.arange(0, BLOCK)
    inside = columns < hidden
    weight = tl.load(weight_ptr + columns, inside, 0.0)
    after_previous(EARLY)
    residual = tl.load(residual_ptr + row + columns, inside, 0.0)
    part = row_or_sum(
        x_ptr, x_ptr, topk_weights_ptr, ids_ptr, token, columns, inside, hidden, num_experts,
        TOP_K, False,
    )  # fmt: skip
    total = _sum_over_ranks(part, columns, inside, arenas, own, broken_ptr, patience, RANKS)
    # Rounded before the residual is added, as it is between two kernels.
    summed = stream_with(total.to(part.dtype), residual)
    tl.store(summed_ptr + row + columns, summed, inside)
    normed = norm_of(summed.to(tl.float32), weight, inside, hidden, eps, CENTRED)
    tl.store(normed_ptr + row + columns, normed, inside)


def all_reduce_(x: Tensor, ring: Ring) -> Tensor:
    """The sum of every rank's contiguous `x`, of floating point and at most `HALF_BYTES`, in place:
    float32 sums in rank order, rounded once."""
    block_bytes = max(_PROGRAM_BYTES, triton.next_power_of_2(triton.cdiv(x.nbytes, SLOTS)))
    block = block_bytes // x.element_size()
    _all_reduce_kernel[(triton.cdiv(x.numel(), block),)](
        x, x.numel(), ring.arenas, ring.own, ring.broken, ring.patience,
        RANKS=len(ring.arenas), BLOCK=block, num_warps=8, **early_launch(x),
    )  # fmt: skip
    return x


def all_reduce_norm(
    x: Tensor | ExpertOutputs,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    ring: Ring,
    *,
    centred: bool,
) -> tuple[Tensor, Tensor]:
    """`(normed, summed)` of the sum of every rank's x, and of residual, all [T, hidden] in x's
    dtype: what `all_reduce_` and then `layer_norm` (`centred`) or `rms_norm` give. Contiguous, at
    most `SLOTS` tokens of at most `SLOT_BYTES`; what experts made is in the order of pairs."""
    assert isinstance(x, Tensor) or x.places is None
    made, _, topk_weights, topk_ids, num_experts, top_k = operands_of(x)
    num_tokens, hidden = residual.shape
    normed, summed = torch.empty_like(residual), torch.empty_like(residual)
    block = triton.next_power_of_2(hidden)
    _all_reduce_norm_kernel[(num_tokens,)](
        made, topk_weights, topk_ids, residual, weight, normed, summed, hidden, num_experts, eps,
        ring.arenas, ring.own, ring.broken, ring.patience,
        RANKS=len(ring.arenas), TOP_K=top_k, CENTRED=centred, BLOCK=block,
        num_warps=warps_of_row(block), **early_launch(residual),
    )  # fmt: skip
    return normed, summed
