"""The router as one kernel: scores, softmax in float32, the top experts and their weights."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.moe import route
from dropless.ops.triton.launch import after_previous, arrives_last, counters, early_launch

# Up to here a program for each token, which reads all router weights, is faster than matrix units.
_VECTOR_TOKENS = 128
_HELD = 5  # steps whose weights fit into registers: 16 of the 128 of a thread for each
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


@triton.jit(do_not_specialize=["num_tokens"])
def _route_token_kernel(
    x_ptr, router_ptr, weights_ptr, ids_ptr, num_tokens, hidden, num_experts, norm_p,
    TOP_K: tl.constexpr, CHOICES: tl.constexpr, EXPERTS: tl.constexpr, HAS_NORM: tl.constexpr,
    STEPS: tl.constexpr, HELD: tl.constexpr, DEPTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One token a program. Most of the weights are in registers before x is there."""
    token = tl.program_id(0)
    experts = tl.arange(0, EXPERTS)
    held = tl.tuple(())
    for step in tl.static_range(HELD):
        part = _router_part(router_ptr, experts, step, hidden, num_experts, DEPTH)
        held = held + (part,)  # noqa: RUF005 (Triton unpacks nothing)
    after_previous(EARLY)
    total = tl.zeros([EXPERTS, DEPTH], tl.float32)
    for step in tl.static_range(STEPS):  # unrolled, so that loads do not wait for each other
        depth = step * DEPTH + tl.arange(0, DEPTH)
        x = tl.load(x_ptr + token.to(tl.int64) * hidden + depth, depth < hidden, 0.0)
        if step < HELD:
            router = held[step]
        else:
            router = _router_part(router_ptr, experts, step, hidden, num_experts, DEPTH)
        total += router.to(tl.float32) * x.to(tl.float32)[None, :]
    scores = tl.sum(total, 1).to(x_ptr.dtype.element_ty).to(tl.float32)
    _choose(
        scores[None, :], token + tl.arange(0, 1), num_tokens, num_experts, weights_ptr, ids_ptr,
        norm_p, TOP_K, CHOICES, EXPERTS, HAS_NORM,
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
    weights = x.new_empty(num_tokens, top_k)
    ids = topk_ids
    if ids is None:
        ids = torch.empty(num_tokens, top_k, dtype=torch.int64, device=x.device)
    arguments = (x, router_weight, weights, ids, num_tokens, hidden, num_experts, norm_p or 1.0)
    shared = {
        "TOP_K": top_k,
        "CHOICES": triton.next_power_of_2(top_k),
        "EXPERTS": max(16, triton.next_power_of_2(num_experts)),
        "HAS_NORM": norm_p is not None,
        **early_launch(x),
    }
    if by_token:
        depth = max(128, 16384 // shared["EXPERTS"])  # 32 registers a thread for the sums
        steps = triton.cdiv(hidden, depth)
        _route_token_kernel[(num_tokens,)](
            *arguments, STEPS=steps, HELD=min(steps, _HELD), DEPTH=depth, num_warps=16, **shared
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
