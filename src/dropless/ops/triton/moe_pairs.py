"""The experts of a step of one or a few tokens: each (token, choice) pair reads its expert's
weights for itself, row by row, which needs no grouping and no matrix units."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.triton.fp8 import parts, scale_of, to_fp8
from dropless.ops.triton.launch import after_previous, arrives_last, counters, early_launch


@triton.jit
def _gate_up_pair_kernel(
    x_ptr, weight_ptr, scales_ptr, ids_ptr, out_ptr, hidden, width, num_experts, top_k,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, SIZE: tl.constexpr, SCALED: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """COLUMNS of silu(gate x) * (up x) of one pair."""
    after_previous(EARLY)
    pair = tl.program_id(0)
    expert = tl.load(ids_ptr + pair)
    if (expert < 0) | (expert >= num_experts):
        return
    x_row = x_ptr + (pair // top_k).to(tl.int64) * hidden
    x_scale = 1.0
    if SCALED:
        whole = tl.arange(0, SIZE)
        x_scale = scale_of(tl.load(x_row + whole, whole < hidden, 0.0), 0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    at = weight_ptr + (expert * 2 * width + columns[:, None]) * hidden
    gates = tl.zeros([COLUMNS, DEPTH], tl.float32)
    ups = tl.zeros([COLUMNS, DEPTH], tl.float32)
    for begin in range(0, hidden, DEPTH):
        depth = begin + tl.arange(0, DEPTH)
        there = inside[:, None] & (depth[None, :] < hidden)
        gate = tl.load(at + depth[None, :], there, 0.0)
        up = tl.load(at + width * hidden + depth[None, :], there, 0.0)
        x = tl.load(x_row + depth, depth < hidden, 0.0)
        if SCALED:
            x = to_fp8(x, x_scale)
        gates += gate.to(tl.float32) * x.to(tl.float32)[None, :]
        ups += up.to(tl.float32) * x.to(tl.float32)[None, :]
    gate_sum, up_sum = tl.sum(gates, 1), tl.sum(ups, 1)
    if SCALED:
        scale_at = scales_ptr + expert * 2 * width + columns
        gate_sum *= tl.load(scale_at, inside, 0.0) * x_scale
        up_sum *= tl.load(scale_at + width, inside, 0.0) * x_scale
    made = gate_sum * tl.sigmoid(gate_sum) * up_sum
    tl.store(out_ptr + pair.to(tl.int64) * width + columns, made, inside)


@triton.jit
def _down_pair_kernel(
    made_ptr, weight_ptr, scales_ptr, ids_ptr, topk_weights_ptr, parts_ptr, counters_ptr, out_ptr,
    hidden, width, num_experts, expert_stride, out_stride, in_stride,
    TOP_K: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, SIZE: tl.constexpr,
    SCALED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """COLUMNS of down @ made of one pair. The last pair of a token to end adds all of them up, in
    the order of choices."""
    after_previous(EARLY)
    pair = tl.program_id(0)
    token, choice = pair // TOP_K, pair % TOP_K
    expert = tl.load(ids_ptr + pair)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < hidden
    part_at = parts_ptr + (token * TOP_K).to(tl.int64) * hidden + columns
    if (expert >= 0) & (expert < num_experts):
        row = made_ptr + pair.to(tl.int64) * width
        made_scale = 1.0
        if SCALED:
            whole = tl.arange(0, SIZE)
            made_scale = scale_of(tl.load(row + whole, whole < width, 0.0), 0)
        at = weight_ptr + expert * expert_stride + columns[:, None].to(tl.int64) * out_stride
        total = tl.zeros([COLUMNS, DEPTH], tl.float32)
        for begin in range(0, width, DEPTH):
            depth = begin + tl.arange(0, DEPTH)
            there = inside[:, None] & (depth[None, :] < width)
            weight = tl.load(at + depth[None, :].to(tl.int64) * in_stride, there, 0.0)
            made = tl.load(row + depth, depth < width, 0.0)
            if SCALED:
                made = to_fp8(made, made_scale)
            total += weight.to(tl.float32) * made.to(tl.float32)[None, :]
        part = tl.sum(total, 1)
        if SCALED:
            part *= tl.load(scales_ptr + expert * hidden + columns, inside, 0.0) * made_scale
        tl.store(part_at + choice * hidden, part, inside)
    if not arrives_last(counters_ptr + token * tl.num_programs(1) + tl.program_id(1), TOP_K):
        return
    out = tl.zeros([COLUMNS], tl.float32)
    for other in tl.static_range(TOP_K):
        expert = tl.load(ids_ptr + token * TOP_K + other)
        known = inside & (expert >= 0) & (expert < num_experts)
        part = tl.load(part_at + other * hidden, known, 0.0, cache_modifier=".cg").to(tl.float32)
        out += part * tl.load(topk_weights_ptr + token * TOP_K + other).to(tl.float32)
    tl.store(out_ptr + token.to(tl.int64) * hidden + columns, out, inside)


def experts_by_pairs(
    x: Tensor,
    gate_up: Tensor | Fp8Tensor,
    down: Tensor | Fp8Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
) -> Tensor:
    """`fused_experts` in two kernels."""
    made = gate_up_by_pairs(x, gate_up, topk_ids)
    (num_experts, hidden, width), top_k = down.shape, topk_ids.shape[1]
    pairs, out = x.new_empty(topk_ids.numel(), hidden), torch.empty_like(x)
    weight, scales = parts(down)
    # Long along whichever dimension lies contiguous in memory.
    columns, depth = (64, 128) if weight.stride(1) == 1 else (8, 512)
    blocks = triton.cdiv(hidden, columns)
    _down_pair_kernel[(len(pairs), blocks)](
        made, weight, scales, topk_ids, topk_weights, pairs, counters(x.device, len(x) * blocks),
        out, hidden, width, num_experts, *weight.stride(),
        TOP_K=top_k, COLUMNS=columns, DEPTH=depth, SIZE=triton.next_power_of_2(width),
        SCALED=isinstance(down, Fp8Tensor), num_warps=4, **early_launch(x),
    )  # fmt: skip
    return out


def gate_up_by_pairs(x: Tensor, gate_up: Tensor | Fp8Tensor, topk_ids: Tensor) -> Tensor:
    """silu(gate x) * (up x) of every pair: [pairs, width]."""
    num_experts, width, hidden = gate_up.shape[0], gate_up.shape[1] // 2, gate_up.shape[2]
    made = x.new_empty(topk_ids.numel(), width)
    columns, depth = 4, 1024
    _gate_up_pair_kernel[(topk_ids.numel(), triton.cdiv(width, columns))](
        x, *parts(gate_up), topk_ids, made, hidden, width, num_experts, topk_ids.shape[1],
        COLUMNS=columns, DEPTH=depth, SIZE=triton.next_power_of_2(hidden),
        SCALED=isinstance(gate_up, Fp8Tensor), num_warps=4, **early_launch(x),
    )  # fmt: skip
    return made
