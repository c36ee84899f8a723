"""The router as one kernel: scores, softmax in float32, the top experts and their weights. Of few
tokens it makes the norm before it, too, and all that the experts want to know of them."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.moe import Routed, route
from dropless.ops.norm_route import norm_route
from dropless.ops.triton.fp8 import scale_of, to_fp8
from dropless.ops.triton.grouping import empty_grouping, group_in_one, padded
from dropless.ops.triton.launch import after_previous, arrives_last, counters, early_launch
from dropless.ops.triton.moe import goes_by_pairs, goes_by_tiles
from dropless.ops.triton.norm import norm_of, norm_rows

# Up to here a program for each token, which reads all router weights, is faster than matrix units.
_VECTOR_TOKENS = 128
_NORMED_TOKENS = 32  # up to here such a program makes the norm, too
_GROUPED_TOKENS = 32  # up to here the last of them groups all pairs
_HELD, _NORM_HELD = (
    5,
    4,
)  # steps whose weights fit into registers: 16 of the 128 of a thread for each
_ROWS, _SPLITS = 16, 8  # tokens of a tile for the matrix units; parts of its inputs


@triton.jit
def _choose(
    scores, rows, num_tokens, num_experts, weights_ptr, ids_ptr, norm_p,
    TOP_K: tl.constexpr, CHOICES: tl.constexpr, EXPERTS: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """Stores the top of the softmax of scores [rows, EXPERTS] float32."""
    experts, choices = tl.arange(0, EXPERTS), tl.arange(0, CHOICES)
    scores = tl.where(experts[None, :] < num_experts, scores, float("-inf"))
    odds = tl.exp(scores - tl.max(scores, 1)[:, None])
    left = odds / tl.sum(odds, 1)[:, None]
    weights = tl.zeros([scores.shape[0], CHOICES], tl.float32)
    ids = tl.zeros([scores.shape[0], CHOICES], tl.int64)
    for choice in tl.static_range(TOP_K):
        best, expert = tl.max(left, 1, return_indices=True)
        is_it = choices[None, :] == choice
        weights = tl.where(is_it, best[:, None], weights)
        ids = tl.where(is_it, expert[:, None].to(tl.int64), ids)
        left = tl.where(experts[None, :] == expert[:, None], -1.0, left)
    if HAS_NORM:
        # Of weights > 0; exp and log, for Triton has no power.
        powers = tl.where(choices[None, :] < TOP_K, tl.exp(norm_p * tl.log(weights)), 0.0)
        weights = weights / tl.exp(tl.log(tl.sum(powers, 1)) / norm_p)[:, None]
    at = rows[:, None].to(tl.int64) * TOP_K + choices[None, :]
    inside = (rows[:, None] < num_tokens) & (choices[None, :] < TOP_K)
    tl.store(weights_ptr + at, weights, inside)
    tl.store(ids_ptr + at, ids, inside)


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
    x_ptr, router_ptr, weights_ptr, ids_ptr, num_tokens, hidden, num_experts, norm_p,
    TOP_K: tl.constexpr, CHOICES: tl.constexpr, EXPERTS: tl.constexpr, HAS_NORM: tl.constexpr,
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
        norm_p, TOP_K, CHOICES, EXPERTS, HAS_NORM,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_tokens"])
def _norm_route_kernel(
    x_ptr, residual_ptr, norm_weight_ptr, summed_ptr, normed_ptr, values_ptr, scales_ptr, eps,
    pairs_ptr, places_ptr, offsets_ptr, counter_ptr, num_here,
    router_ptr, weights_ptr, ids_ptr, num_tokens, hidden, num_experts, norm_p,
    CENTRED: tl.constexpr, QUANTIZED: tl.constexpr, BLOCK: tl.constexpr, PAIRS: tl.constexpr,
    HERE: tl.constexpr,
    TOP_K: tl.constexpr, CHOICES: tl.constexpr, EXPERTS: tl.constexpr, HAS_NORM: tl.constexpr,
    STEPS: tl.constexpr, HELD: tl.constexpr, DEPTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One token a program: its norm, in 8 bits if QUANTIZED, and its experts. With PAIRS, the last
    program to end groups the pairs of all tokens by the HERE experts, of which num_here exist."""
    token = tl.program_id(0)
    experts = tl.arange(0, EXPERTS)
    columns = tl.arange(0, BLOCK)
    inside = columns < hidden
    row = token.to(tl.int64) * hidden
    held = _held(router_ptr, experts, hidden, num_experts, HELD, DEPTH)
    norm_weight = tl.load(norm_weight_ptr + columns, inside, 0.0)
    after_previous(EARLY)
    x = tl.load(x_ptr + row + columns, inside, 0.0)
    residual = tl.load(residual_ptr + row + columns, inside, 0.0)
    x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
    tl.store(summed_ptr + row + columns, x, inside)
    normed = norm_of(x.to(tl.float32), norm_weight, inside, hidden, eps, CENTRED).to(x.dtype)
    tl.store(normed_ptr + row + columns, normed, inside)
    tl.debug_barrier()  # other threads read it again, each its part of a step
    scores = _scores(
        normed_ptr + row, router_ptr, held, experts, hidden, num_experts,
        STEPS, HELD, EXPERTS, DEPTH,
    )  # fmt: skip
    _choose(
        scores[None, :], token + tl.arange(0, 1), num_tokens, num_experts, weights_ptr, ids_ptr,
        norm_p, TOP_K, CHOICES, EXPERTS, HAS_NORM,
    )  # fmt: skip
    if QUANTIZED:  # read once more, so that it takes no registers meanwhile
        normed = tl.load(normed_ptr + row + columns, inside, 0.0, cache_modifier=".cg")
        scale = scale_of(normed, 0)
        tl.store(values_ptr + row + columns, to_fp8(normed, scale), inside)
        tl.store(scales_ptr + token, scale)
    if PAIRS > 0:
        is_last = arrives_last(counter_ptr, num_tokens)
        if is_last:
            group_in_one(
                ids_ptr, pairs_ptr, places_ptr, offsets_ptr, num_tokens * TOP_K, num_here,
                PAIRS, HERE,
            )  # fmt: skip


@triton.jit(do_not_specialize=["num_tokens"])
def _route_tile_kernel(
    x_ptr, router_ptr, weights_ptr, ids_ptr, num_tokens, hidden, num_experts, norm_p,
    sums_ptr, counters_ptr,
    TOP_K: tl.constexpr, CHOICES: tl.constexpr, EXPERTS: tl.constexpr, HAS_NORM: tl.constexpr,
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
        scores, rows, num_tokens, num_experts, weights_ptr, ids_ptr, norm_p,
        TOP_K, CHOICES, EXPERTS, HAS_NORM,
    )  # fmt: skip


@route.register("cuda")
def route_cuda(
    x: Tensor,
    router_weight: Tensor,
    top_k: int,
    norm_p: float | None,
    topk_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
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
    arguments = (x, router_weight, weights, ids, num_tokens, hidden, num_experts, norm_p or 1.0)
    shared = _sizes(x, router_weight, top_k, norm_p)
    if by_token:
        _route_token_kernel[(num_tokens,)](
            *arguments, **_steps(hidden, shared["EXPERTS"], _HELD), num_warps=16, **shared
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
        "CHOICES": triton.next_power_of_2(top_k),
        "EXPERTS": max(16, triton.next_power_of_2(len(router_weight))),
        "HAS_NORM": norm_p is not None,
        **early_launch(x),
    }


def _steps(hidden: int, experts: int, held: int) -> dict[str, int]:
    """Over the inputs of one token."""
    depth = max(128, 16384 // experts)  # 32 registers a thread for the sums
    steps = triton.cdiv(hidden, depth)
    return {"STEPS": steps, "HELD": min(steps, held), "DEPTH": depth}


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
    alone = goes_by_pairs(down, num_tokens * top_k)
    in_tiles = not alone and goes_by_tiles(down, x)
    quantizes = in_tiles and isinstance(down, Fp8Tensor)
    if num_tokens > _NORMED_TOKENS:
        made = norm_rows(x, residual, norm_weight, eps, centred=centred, quantized=quantizes)
        assert made.rows is not None  # wanted
        chosen = route_cuda(made.rows, router_weight, top_k, norm_p, topk_ids)
        return Routed(made.rows, *chosen, made.quantized), made.stream
    x, residual = x.contiguous(), residual.contiguous()
    stream, normed = torch.empty_like(x), torch.empty_like(x)
    weights, ids = _room(x, top_k, topk_ids)
    quantized = Fp8Tensor.empty((num_tokens, hidden), x.device) if quantizes else None
    values, scales = (x, x) if quantized is None else (quantized.values, quantized.scales)
    num_here, num_pairs = down.shape[0], num_tokens * top_k
    is_whole = num_here == len(router_weight)  # else experts get other numbers
    groups = not alone and is_whole and num_tokens <= _GROUPED_TOKENS
    grouping = empty_grouping(num_pairs, num_here, x.device) if groups else None
    grouped = (x, x, x)
    if grouping is not None:
        grouped = (grouping.pairs, grouping.places, grouping.offsets)
    shared = _sizes(x, router_weight, top_k, norm_p)
    _norm_route_kernel[(num_tokens,)](
        x, residual, norm_weight, stream, normed, values, scales, eps,
        *grouped, counters(x.device, 1), num_here,
        router_weight, weights, ids, num_tokens, hidden, len(router_weight), norm_p or 1.0,
        CENTRED=centred, QUANTIZED=quantizes, BLOCK=triton.next_power_of_2(hidden),
        PAIRS=max(16, triton.next_power_of_2(num_pairs)) if groups else 0, HERE=padded(num_here),
        **_steps(hidden, shared["EXPERTS"], _NORM_HELD), num_warps=16, **shared,
    )  # fmt: skip
    return Routed(normed, weights, ids, quantized, grouping), stream
