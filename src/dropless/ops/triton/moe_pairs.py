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

_BYTES = 1 << 15  # of weights, which a program holds at once


@triton.jit
def _gate_up_kernel(
    x_ptr, weight_ptr, ids_ptr, out_ptr, hidden, width, num_experts, top_k,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """COLUMNS of silu(gate x) * (up x) of one pair."""
    after_previous(EARLY)
    pair = tl.program_id(0)
    expert = tl.load(ids_ptr + pair)
    if (expert < 0) | (expert >= num_experts):
        return
    x_row = x_ptr + (pair // top_k).to(tl.int64) * hidden
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
        gates += gate.to(tl.float32) * x.to(tl.float32)[None, :]
        ups += up.to(tl.float32) * x.to(tl.float32)[None, :]
    gate_sum, up_sum = tl.sum(gates, 1), tl.sum(ups, 1)
    made = gate_sum * tl.sigmoid(gate_sum) * up_sum
    tl.store(out_ptr + pair.to(tl.int64) * width + columns, made, inside)


@triton.jit
def _gate_up_fp8_kernel(
    x_ptr, weight_ptr, scales_ptr, ids_ptr, out_ptr, hidden, width, num_experts, top_k,
    COLUMNS: tl.constexpr, SIZE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The same in 8 bits. All weights are on their way before the scale of x is found."""
    after_previous(EARLY)
    pair = tl.program_id(0)
    expert = tl.load(ids_ptr + pair)
    if (expert < 0) | (expert >= num_experts):
        return
    columns, depth = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, SIZE)
    inside = columns < width
    at = weight_ptr + (expert * 2 * width + columns[:, None]) * hidden + depth[None, :]
    there = inside[:, None] & (depth[None, :] < hidden)
    gate, up = tl.load(at, there, 0.0), tl.load(at + width * hidden, there, 0.0)
    x = tl.load(x_ptr + (pair // top_k).to(tl.int64) * hidden + depth, depth < hidden, 0.0)
    scale = scale_of(x, 0)
    x = to_fp8(x, scale).to(tl.float32)[None, :]
    scale_at = scales_ptr + expert * 2 * width + columns
    gate_sum = tl.sum(gate.to(tl.float32) * x, 1) * tl.load(scale_at, inside, 0.0) * scale
    up_sum = tl.sum(up.to(tl.float32) * x, 1) * tl.load(scale_at + width, inside, 0.0) * scale
    made = gate_sum * tl.sigmoid(gate_sum) * up_sum
    tl.store(out_ptr + pair.to(tl.int64) * width + columns, made, inside)


@triton.jit
def _down_kernel(
    made_ptr, weight_ptr, scales_ptr, ids_ptr, topk_weights_ptr, parts_ptr, counters_ptr, out_ptr,
    hidden, width, num_experts, expert_stride, out_stride, in_stride,
    TOP_K: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr,
    SCALED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """COLUMNS of down @ made of one pair, its inputs DEPTH at a time, or the WHOLE of them at once.
    The last pair of a token to end adds all of them up, in the order of choices."""
    after_previous(EARLY)
    pair = tl.program_id(0)
    token, choice = pair // TOP_K, pair % TOP_K
    expert = tl.load(ids_ptr + pair)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < hidden
    part_at = parts_ptr + (token * TOP_K).to(tl.int64) * hidden + columns
    if (expert >= 0) & (expert < num_experts):
        row = made_ptr + pair.to(tl.int64) * width
        at = weight_ptr + expert * expert_stride + columns[:, None].to(tl.int64) * out_stride
        if WHOLE:
            depth = tl.arange(0, DEPTH)
            there = inside[:, None] & (depth[None, :] < width)
            weight = tl.load(at + depth[None, :].to(tl.int64) * in_stride, there, 0.0)
            made = tl.load(row + depth, depth < width, 0.0)
            if SCALED:
                made_scale = scale_of(made, 0)
                made = to_fp8(made, made_scale)
            part = tl.sum(weight.to(tl.float32) * made.to(tl.float32)[None, :], 1)
            if SCALED:
                part *= tl.load(scales_ptr + expert * hidden + columns, inside, 0.0) * made_scale
        else:
            total = tl.zeros([COLUMNS, DEPTH], tl.float32)
            for begin in range(0, width, DEPTH):
                depth = begin + tl.arange(0, DEPTH)
                there = inside[:, None] & (depth[None, :] < width)
                weight = tl.load(at + depth[None, :].to(tl.int64) * in_stride, there, 0.0)
                made = tl.load(row + depth, depth < width, 0.0)
                total += weight.to(tl.float32) * made.to(tl.float32)[None, :]
            part = tl.sum(total, 1)
        tl.store(part_at + choice * hidden, part, inside)
    if not arrives_last(counters_ptr + token * tl.num_programs(1) + tl.program_id(1), TOP_K):
        return
    out = tl.zeros([COLUMNS], tl.float32)
    for other in tl.static_range(TOP_K):
        expert = tl.load(ids_ptr + token * TOP_K + other)
        known = inside & (expert >= 0) & (expert < num_experts)
        made = tl.load(part_at + other * hidden, known, 0.0, cache_modifier=".cg").to(tl.float32)
        out += made * tl.load(topk_weights_ptr + token * TOP_K + other).to(tl.float32)
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
    whole = weight.stride(1) != 1
    if whole:
        depth = int(triton.next_power_of_2(width))
        columns = max(1, _BYTES // (depth * weight.element_size()))
    else:
        columns, depth = 64, 128  # columns lie side by side in memory
    blocks = triton.cdiv(hidden, columns)
    _down_kernel[(len(pairs), blocks)](
        made, weight, scales, topk_ids, topk_weights, pairs, counters(x.device, len(x) * blocks),
        out, hidden, width, num_experts, *weight.stride(),
        TOP_K=top_k, COLUMNS=columns, DEPTH=depth, WHOLE=whole,
        SCALED=isinstance(down, Fp8Tensor), num_warps=4, **early_launch(x),
    )  # fmt: skip
    return out


def gate_up_by_pairs(x: Tensor, gate_up: Tensor | Fp8Tensor, topk_ids: Tensor) -> Tensor:
    """silu(gate x) * (up x) of every pair: [pairs, width]."""
    num_experts, width, hidden = gate_up.shape[0], gate_up.shape[1] // 2, gate_up.shape[2]
    made = x.new_empty(topk_ids.numel(), width)
    if isinstance(gate_up, Tensor):
        columns, depth = 4, 1024
        _gate_up_kernel[(topk_ids.numel(), triton.cdiv(width, columns))](
            x, gate_up, topk_ids, made, hidden, width, num_experts, topk_ids.shape[1],
            COLUMNS=columns, DEPTH=depth, num_warps=4, **early_launch(x),
        )  # fmt: skip
        return made
    size = int(triton.next_power_of_2(hidden))
    columns = max(1, _BYTES // (2 * size))
    _gate_up_fp8_kernel[(topk_ids.numel(), triton.cdiv(width, columns))](
        x, gate_up.values, gate_up.scales, topk_ids, made, hidden, width, num_experts,
        topk_ids.shape[1], COLUMNS=columns, SIZE=size, num_warps=4, **early_launch(x),
    )  # fmt: skip
    return made
