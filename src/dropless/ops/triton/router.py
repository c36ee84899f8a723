"""The router as one kernel: scores, softmax in float32, the top experts and their weights. Of few
tokens it makes the norm before it, too, and all that the experts want to know of them."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.moe import Grouping, Routed, route
from dropless.ops.norm_route import norm_route
from dropless.ops.triton.fp8 import scale_of, to_fp8
from dropless.ops.triton.grouping import empty_grouping, group_choices, scatter
from dropless.ops.triton.launch import after_previous, arrives_last, counters, early_launch
from dropless.ops.triton.moe import goes_by_pairs, goes_by_tiles
from dropless.ops.triton.norm import (
    NormBefore,
    Normed,
    norm_rows,
    norm_statistics,
    normed_by,
    stream_with,
)

# Up to here a program for each token, which reads all router weights, is faster than matrix units.
_VECTOR_TOKENS = 128
_NORMED_TOKENS = 32  # up to here the norm before it and the router are one kernel
_NORMED_WARPS = 8
# It is compiled for so many tokens, which are sizes of `engine.warm_up`. For fewer, Triton would
# spread the experts of one token over warps, which wait for one another.
_ROOMS = (16, 32)
_STEP_WEIGHTS = 16384  # of a step of a program that has a token for itself: 32 a thread
_PART_WEIGHTS = 16384  # of a program that has a part of a token
_HELD = 5  # steps whose weights fit into registers: 16 of the 128 of a thread for each
_ROWS, _SPLITS = 16, 8  # tokens of a tile for the matrix units; parts of its inputs
_COMPARED_EXPERTS = tl.constexpr(32)  # up to so many, a warp's, each is compared with each
_LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _choose(
    scores, rows, num_tokens, num_experts, weights_ptr, ids_ptr,
    TOP_K: tl.constexpr, EXPERTS: tl.constexpr, NORM_P: tl.constexpr,
):  # fmt: skip
    """Stores the top of the softmax of scores [rows, EXPERTS] float32, divided by its p-norm unless
    NORM_P is None. Gives the ranks of all experts from `_ranks`."""
    experts = tl.arange(0, EXPERTS)[None, :]
    scores = tl.where(experts < num_experts, scores, float("-inf"))
    ranks = _ranks(scores, num_experts, TOP_K, EXPERTS)
    odds = tl.exp(scores - tl.max(scores, 1)[:, None])
    odds = odds / tl.sum(odds, 1)[:, None]
    weights = tl.where(ranks < TOP_K, odds, 0.0)
    if NORM_P is not None:
        weights = weights / _length(weights, NORM_P)[:, None]
    at = rows[:, None].to(tl.int64) * TOP_K + ranks
    chosen = (rows[:, None] < num_tokens) & (ranks < TOP_K)
    scatter(weights_ptr + at, weights, chosen)
    scatter(ids_ptr + at, tl.broadcast_to(experts, ranks.shape).to(tl.int64), chosen)
    return ranks


@triton.jit
def _ranks(scores, num_experts, TOP_K: tl.constexpr, EXPERTS: tl.constexpr):
    """How many experts stand before each, for all that are chosen: int32 [rows, EXPERTS], TOP_K or
    more for the others. Of equal experts the first stands first. A NaN is the lowest score, so that
    each rank is one expert's whatever the scores are."""
    experts = tl.arange(0, EXPERTS)[None, :]
    left = tl.where(scores > _LOWEST, scores, _LOWEST)
    left = tl.where(experts < num_experts, left, float("-inf"))
    if EXPERTS <= _COMPARED_EXPERTS:
        ranks = tl.zeros(scores.shape, tl.int32)
        for expert in tl.static_range(EXPERTS):
            other = tl.gather(left, tl.full(scores.shape, expert, tl.int32), 1)
            ranks += ((other > left) | ((other == left) & (expert < experts))).to(tl.int32)
        return ranks
    ranks = tl.full(scores.shape, TOP_K, tl.int32)
    for choice in tl.static_range(TOP_K):
        is_it = experts == tl.argmax(left, 1)[:, None]
        ranks = tl.where(is_it, choice, ranks)
        left = tl.where(is_it, float("-inf"), left)
    return ranks


@triton.jit
def _length(weights, NORM_P: tl.constexpr):
    """The p-norm of each row of numbers >= 0; exp and log, for Triton has no power."""
    if NORM_P == 1.0:
        return tl.sum(weights, 1)
    return tl.exp(tl.log(tl.sum(tl.exp(NORM_P * tl.log(weights)), 1)) / NORM_P)


@triton.jit
def _router_part(router_ptr, experts, step, hidden, num_experts, DEPTH: tl.constexpr):
    """[EXPERTS, DEPTH]: the weights of one step over the inputs."""
    depth = step * DEPTH + tl.arange(0, DEPTH)
    there = (experts[:, None] < num_experts) & (depth[None, :] < hidden)
    return tl.load(router_ptr + experts[:, None] * hidden + depth[None, :], there, 0.0)


@triton.jit
def _held(router_ptr, experts, hidden, num_experts, HELD: tl.constexpr, DEPTH: tl.constexpr):
    """The first weights, in registers before x is there."""
    held = tl.tuple(())
    for step in tl.static_range(HELD):
        part = _router_part(router_ptr, experts, step, hidden, num_experts, DEPTH)
        held = held + (part,)  # noqa: RUF005 (Triton unpacks nothing)
    return held


@triton.jit
def _scores(
    row_ptr, router_ptr, held, experts, hidden, num_experts,
    STEPS: tl.constexpr, HELD: tl.constexpr, EXPERTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """[EXPERTS] float32, as rounded to the row's type, of a row that this program may have written
    itself. All of the row is on its way before the first product, which ends in a barrier; and the
    weights that were not held as soon as others have made room for them."""
    row = tl.tuple(())
    for step in tl.static_range(STEPS):
        depth = step * DEPTH + tl.arange(0, DEPTH)
        part = tl.load(row_ptr + depth, depth < hidden, 0.0, cache_modifier=".cg")
        row = row + (part,)  # noqa: RUF005
    router = held
    total = tl.zeros([EXPERTS, DEPTH], tl.float32)
    for step in tl.static_range(STEPS):
        total += router[step].to(tl.float32) * row[step].to(tl.float32)[None, :]
        if step + HELD < STEPS:
            part = _router_part(router_ptr, experts, step + HELD, hidden, num_experts, DEPTH)
            router = router + (part,)  # noqa: RUF005
    return tl.sum(total, 1).to(row_ptr.dtype.element_ty).to(tl.float32)


@triton.jit(do_not_specialize=["num_tokens"])
def _route_token_kernel(
    x_ptr, router_ptr, weights_ptr, ids_ptr, num_tokens, hidden, num_experts,
    TOP_K: tl.constexpr, EXPERTS: tl.constexpr, NORM_P: tl.constexpr,
    STEPS: tl.constexpr, HELD: tl.constexpr, DEPTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One token a program."""
    token = tl.program_id(0)
    experts = tl.arange(0, EXPERTS)
    held = _held(router_ptr, experts, hidden, num_experts, HELD, DEPTH)
    after_previous(EARLY)
    scores = _scores(
        x_ptr + token.to(tl.int64) * hidden, router_ptr, held, experts, hidden, num_experts,
        STEPS, HELD, EXPERTS, DEPTH,
    )  # fmt: skip
    _choose(
        scores[None, :], token + tl.arange(0, 1), num_tokens, num_experts, weights_ptr, ids_ptr,
        TOP_K, EXPERTS, NORM_P,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_tokens"])
def _parts_kernel(
    x_ptr, residual_ptr, norm_weight_ptr, summed_ptr, normed_ptr, values_ptr, scales_ptr, eps,
    router_ptr, sums_ptr, counter_ptr, weights_ptr, ids_ptr, pairs_ptr, places_ptr, offsets_ptr,
    num_tokens, hidden, num_experts,
    NORMS: tl.constexpr, CENTRED: tl.constexpr, QUANTIZED: tl.constexpr, GROUPS: tl.constexpr,
    TOKENS: tl.constexpr, TOP_K: tl.constexpr, EXPERTS: tl.constexpr, NORM_P: tl.constexpr,
    BLOCK: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A part of the inputs of one token's scores a program, which if it NORMS finds the statistics
    for itself; then there is a program more for each token, which stores its norm. The last of the
    parts of all tokens to end adds them up, chooses, and with GROUPS groups the pairs by so many
    experts."""
    token, part = tl.program_id(0), tl.program_id(1)
    columns, depth = tl.arange(0, BLOCK), part * DEPTH + tl.arange(0, DEPTH)
    experts = tl.arange(0, EXPERTS)
    inside, there = columns < hidden, depth < hidden  # nothing is there after the last part
    router = _router_part(router_ptr, experts, part, hidden, num_experts, DEPTH)
    row = token.to(tl.int64) * hidden
    if NORMS:
        part_weight = tl.load(norm_weight_ptr + depth, there, 0.0)
        norm_weight = tl.load(norm_weight_ptr + columns, inside & (part == PARTS), 0.0)
    after_previous(EARLY)
    normed = tl.load(x_ptr + row + depth, there, 0.0)
    if NORMS:
        part_residual = tl.load(residual_ptr + row + depth, there, 0.0)
        x = tl.load(x_ptr + row + columns, inside, 0.0)
        residual = tl.load(residual_ptr + row + columns, inside, 0.0)
        x = stream_with(x, residual)
        mean, scale = norm_statistics(x.to(tl.float32), inside, hidden, eps, CENTRED)
        if part == PARTS:
            tl.store(summed_ptr + row + columns, x, inside)
            normed_row = normed_by(x.to(tl.float32), mean, scale, norm_weight).to(x.dtype)
            tl.store(normed_ptr + row + columns, normed_row, inside)
            if QUANTIZED:
                fp8_scale = scale_of(normed_row, 0)
                # Else Triton would take 16 elements a thread of x, too, half of what is side by
                # side.
                at = tl.max_contiguous(values_ptr + row + columns, 8)
                tl.store(at, to_fp8(normed_row, fp8_scale), inside)
                tl.store(scales_ptr + token, fp8_scale)
            return
        part_x = stream_with(normed, part_residual).to(tl.float32)
        normed = normed_by(part_x, mean, scale, part_weight).to(x.dtype)
    sums = tl.sum(router.to(tl.float32) * normed.to(tl.float32)[None, :], 1)
    tl.store(sums_ptr + (token * PARTS + part) * EXPERTS + experts, sums)
    if not arrives_last(counter_ptr, num_tokens * PARTS):
        return
    tokens = tl.arange(0, TOKENS)
    scores = _sum_of_parts(sums_ptr, tokens, num_tokens, TOKENS, PARTS, EXPERTS)
    ranks = _choose(
        scores.to(normed.dtype).to(tl.float32), tokens, num_tokens, num_experts, weights_ptr,
        ids_ptr, TOP_K, EXPERTS, NORM_P,
    )  # fmt: skip
    if GROUPS > 0:
        group_choices(
            ranks, num_tokens, pairs_ptr, places_ptr, offsets_ptr, TOP_K, TOKENS, EXPERTS, GROUPS
        )


@triton.jit
def _sum_of_parts(
    sums_ptr, tokens, num_tokens,
    TOKENS: tl.constexpr, PARTS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """The scores [TOKENS, EXPERTS] float32 of all tokens, which other programs made in PARTS."""
    at = sums_ptr + tokens[:, None] * PARTS * EXPERTS + tl.arange(0, EXPERTS)[None, :]
    at = tl.multiple_of(at, (4, 4))  # bytes: a thread takes no two experts at once, as in `_ranks`
    is_token = tokens[:, None] < num_tokens
    scores = tl.zeros([TOKENS, EXPERTS], tl.float32)
    for part in tl.static_range(PARTS):
        scores += tl.load(at + part * EXPERTS, is_token, 0.0, cache_modifier=".cg")
    return scores


@triton.jit(do_not_specialize=["num_tokens"])
def _route_tile_kernel(
    x_ptr, router_ptr, weights_ptr, ids_ptr, num_tokens, hidden, num_experts,
    sums_ptr, counters_ptr,
    TOP_K: tl.constexpr, EXPERTS: tl.constexpr, NORM_P: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """A part of the inputs of ROWS tokens a program; the last of the parts to end adds them up and
    chooses."""
    after_previous(EARLY)
    tile, split = tl.program_id(0), tl.program_id(1)
    rows = tile * ROWS + tl.arange(0, ROWS)
    experts = tl.arange(0, EXPERTS)
    scores = tl.zeros([ROWS, EXPERTS], tl.float32)
    part = tl.cdiv(tl.cdiv(hidden, SPLITS), DEPTH) * DEPTH
    for begin in range(split * part, tl.minimum(hidden, (split + 1) * part), DEPTH):
        depth = begin + tl.arange(0, DEPTH)
        x = tl.load(
            x_ptr + rows[:, None].to(tl.int64) * hidden + depth[None, :],
            (rows[:, None] < num_tokens) & (depth[None, :] < hidden), 0.0,
        )  # fmt: skip
        there = (experts[None, :] < num_experts) & (depth[:, None] < hidden)
        router = tl.load(router_ptr + experts[None, :] * hidden + depth[:, None], there, 0.0)
        scores = tl.dot(x, router, scores, input_precision=PRECISION)
    at = tl.arange(0, ROWS)[:, None] * EXPERTS + experts[None, :]
    sums_at = sums_ptr + tile * SPLITS * ROWS * EXPERTS + at
    tl.store(sums_at + split * ROWS * EXPERTS, scores)
    if not arrives_last(counters_ptr + tile, SPLITS):
        return
    scores = tl.zeros([ROWS, EXPERTS], tl.float32)
    for other in tl.static_range(SPLITS):
        scores += tl.load(sums_at + other * ROWS * EXPERTS, cache_modifier=".cg")
    scores = scores.to(x_ptr.dtype.element_ty).to(tl.float32)
    _choose(
        scores, rows, num_tokens, num_experts, weights_ptr, ids_ptr, TOP_K, EXPERTS, NORM_P
    )  # fmt: skip


@route.register("cuda")
def route_cuda(
    x: Tensor,
    router_weight: Tensor,
    top_k: int,
    norm_p: float | None,
    topk_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if len(x) <= _NORMED_TOKENS:
        return _route_by_parts(x, router_weight, top_k, norm_p, topk_ids)
    by_token = len(x) <= _VECTOR_TOKENS
    return _route(x, router_weight, top_k, norm_p, topk_ids, by_token=by_token)


@route.register_invariant("cuda")
def route_invariant(
    x: Tensor,
    router_weight: Tensor,
    top_k: int,
    norm_p: float | None,
    topk_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A program for each token, however many there are."""
    return _route(x, router_weight, top_k, norm_p, topk_ids, by_token=True)


def _route(
    x: Tensor,
    router_weight: Tensor,
    top_k: int,
    norm_p: float | None,
    topk_ids: Tensor | None,
    *,
    by_token: bool,
) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    num_tokens, hidden = x.shape
    num_experts = len(router_weight)
    weights, ids = _room(x, top_k, topk_ids)
    arguments = (x, router_weight, weights, ids, num_tokens, hidden, num_experts)
    shared = _sizes(x, router_weight, top_k, norm_p)
    if by_token:
        _route_token_kernel[(num_tokens,)](
            *arguments, **_steps(hidden, shared["EXPERTS"]), num_warps=16, **shared
        )
    else:
        wide, tiles = x.dtype == torch.float32, triton.cdiv(num_tokens, _ROWS)
        sums = torch.empty(
            (tiles, _SPLITS, _ROWS, shared["EXPERTS"]), dtype=torch.float32, device=x.device
        )
        _route_tile_kernel[(tiles, _SPLITS)](
            *arguments, sums, counters(x.device, tiles), ROWS=_ROWS, DEPTH=64 if wide else 256,
            SPLITS=_SPLITS, PRECISION="ieee" if wide else "tf32", num_warps=2, num_stages=4,
            **shared,
        )  # fmt: skip
    return weights, ids


def _room(x: Tensor, top_k: int, topk_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """For weights and ids."""
    if topk_ids is None:
        topk_ids = torch.empty(len(x), top_k, dtype=torch.int64, device=x.device)
    return x.new_empty(len(x), top_k), topk_ids


def _sizes(x: Tensor, router_weight: Tensor, top_k: int, norm_p: float | None) -> dict[str, Any]:
    return {
        "TOP_K": top_k,
        "EXPERTS": max(16, triton.next_power_of_2(len(router_weight))),
        "NORM_P": norm_p,
        **early_launch(x),
    }


def _steps(hidden: int, experts: int) -> dict[str, int]:
    """Over the inputs of one token."""
    depth = max(128, _STEP_WEIGHTS // experts)
    steps = int(triton.cdiv(hidden, depth))
    return {"STEPS": steps, "HELD": min(steps, _HELD), "DEPTH": depth}


@norm_route.register("cuda")
def norm_route_cuda(
    x: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
    router_weight: Tensor,
    top_k: int,
    norm_p: float | None,
    down: Tensor | Fp8Tensor,
    topk_ids: Tensor | None = None,
    *,
    centred: bool,
) -> tuple[Routed, Tensor]:
    num_tokens, hidden = x.shape
    is_few = num_tokens <= _NORMED_TOKENS
    alone = goes_by_pairs(down, num_tokens * top_k)
    in_tiles = not alone and goes_by_tiles(down, x)
    quantizes = isinstance(down, Fp8Tensor) and (is_few or in_tiles)
    if not is_few:
        made = norm_rows(x, residual, norm_weight, eps, centred=centred, quantized=quantizes)
        assert made.rows is not None  # wanted
        chosen = route_cuda(made.rows, router_weight, top_k, norm_p, topk_ids)
        return Routed(made.rows, *chosen, made.quantized), made.stream
    x, residual = x.contiguous(), residual.contiguous()
    quantized = Fp8Tensor.empty((num_tokens, hidden), x.device) if quantizes else None
    made = Normed(torch.empty_like(x), quantized, torch.empty_like(x))
    num_here = down.shape[0]
    is_whole = num_here == len(router_weight)  # else experts get other numbers
    groups = not alone and is_whole
    grouping = empty_grouping(num_tokens * top_k, num_here, x.device) if groups else None
    norm = NormBefore(residual, norm_weight, eps, centred)
    chosen = _route_by_parts(x, router_weight, top_k, norm_p, topk_ids, norm, made, grouping)
    assert made.rows is not None  # wanted
    return Routed(made.rows, *chosen, quantized, grouping), made.stream


def _route_by_parts(
    x: Tensor,
    router_weight: Tensor,
    top_k: int,
    norm_p: float | None,
    topk_ids: Tensor | None,
    norm: NormBefore | None = None,
    made: Normed | None = None,
    grouping: Grouping | None = None,
) -> tuple[Tensor, Tensor]:
    """`route` of a few tokens, each by several programs; of their norm, which goes to `made`. Fills
    `grouping`, of experts that are all here."""
    x = x.contiguous()
    num_tokens, hidden = x.shape
    weights, ids = _room(x, top_k, topk_ids)
    shared = _sizes(x, router_weight, top_k, norm_p)
    experts = shared["EXPERTS"]
    depth = max(128, _PART_WEIGHTS // experts)
    num_parts = int(triton.cdiv(hidden, depth))
    sums = torch.empty(num_tokens, num_parts, experts, dtype=torch.float32, device=x.device)
    before: tuple[Any, ...] = (x, x, x, x, x, x, 0.0)
    quantized = None if made is None else made.quantized
    if norm is not None and made is not None:
        values, scales = (x, x) if quantized is None else (quantized.values, quantized.scales)
        before = (
            norm.residual, norm.weight, made.stream, made.rows, values, scales, norm.eps
        )  # fmt: skip
    grouped = (x, x, x)
    if grouping is not None:
        grouped = (grouping.pairs, grouping.places, grouping.offsets)
    _parts_kernel[(num_tokens, num_parts + (norm is not None))](
        x, *before, router_weight, sums, counters(x.device, 1), weights, ids, *grouped,
        num_tokens, hidden, len(router_weight),
        NORMS=norm is not None, CENTRED=norm is not None and norm.centred,
        QUANTIZED=quantized is not None,
        GROUPS=0 if grouping is None else len(grouping.offsets) - 1,
        TOKENS=next(room for room in _ROOMS if num_tokens <= room),
        BLOCK=triton.next_power_of_2(hidden), PARTS=num_parts, DEPTH=depth,
        num_warps=_NORMED_WARPS, **shared,
    )  # fmt: skip
    return weights, ids
