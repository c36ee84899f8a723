"""The experts of a step of one or a few tokens: each (token, choice) pair reads its expert's
weights for itself, row by row, which needs no grouping and no matrix units."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.moe import ExpertOutputs
from dropless.ops.triton.fp8 import (
    Tokens,
    eight_halves,
    halves_of,
    parts,
    scale_of,
    times_eight,
)
from dropless.ops.triton.launch import after_previous, early_launch

_BYTES = 1 << 15  # of weights, which a program of four warps holds at once


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
    x_ptr, x_scales_ptr, weight_ptr, scales_ptr, ids_ptr, out_ptr, hidden, width, num_experts,
    top_k, COLUMNS: tl.constexpr, SIZE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The same in 8 bits, all weights at once, eight of them in a word."""
    after_previous(EARLY)
    pair = tl.program_id(0)
    expert = tl.load(ids_ptr + pair)
    if (expert < 0) | (expert >= num_experts):
        return
    columns, words = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, SIZE // 8)
    inside = columns < width
    num_words = hidden // 8
    at = weight_ptr.to(tl.pointer_type(tl.int64)) + words[None, :]
    at += (expert * 2 * width + columns[:, None]) * num_words
    there = inside[:, None] & (words[None, :] < num_words)
    gate, up = tl.load(at, there, 0), tl.load(at + width * num_words, there, 0)
    token = pair // top_k
    x_at = x_ptr.to(tl.pointer_type(tl.int64)) + token.to(tl.int64) * num_words + words
    a, b, c, d = eight_halves(tl.load(x_at, words < num_words, 0))
    a, b, c, d = a[None, :], b[None, :], c[None, :], d[None, :]
    scale = tl.load(x_scales_ptr + token) * 64.0
    scale_at = scales_ptr + expert * 2 * width + columns
    gate_scales, up_scales = tl.load(scale_at, inside, 0.0), tl.load(scale_at + width, inside, 0.0)
    gate_sum = tl.sum(times_eight(gate, a, b, c, d), 1) * gate_scales * scale
    up_sum = tl.sum(times_eight(up, a, b, c, d), 1) * up_scales * scale
    made = gate_sum * tl.sigmoid(gate_sum) * up_sum
    tl.store(out_ptr + pair.to(tl.int64) * width + columns, made, inside)


@triton.jit
def _down_kernel(
    made_ptr, weight_ptr, ids_ptr, out_ptr,
    hidden, width, num_experts, expert_stride, out_stride, in_stride,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """COLUMNS of down @ made of one pair, its inputs DEPTH at a time, or the WHOLE of them at
    once."""
    after_previous(EARLY)
    pair = tl.program_id(0)
    expert = tl.load(ids_ptr + pair)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < hidden
    if (expert >= 0) & (expert < num_experts):
        row = made_ptr + pair.to(tl.int64) * width
        at = weight_ptr + expert * expert_stride + columns[:, None].to(tl.int64) * out_stride
        if WHOLE:
            depth = tl.arange(0, DEPTH)
            there = inside[:, None] & (depth[None, :] < width)
            weight = tl.load(at + depth[None, :].to(tl.int64) * in_stride, there, 0.0)
            made = tl.load(row + depth, depth < width, 0.0)
            part = tl.sum(weight.to(tl.float32) * made.to(tl.float32)[None, :], 1)
        else:
            total = tl.zeros([COLUMNS, DEPTH], tl.float32)
            for begin in range(0, width, DEPTH):
                depth = begin + tl.arange(0, DEPTH)
                there = inside[:, None] & (depth[None, :] < width)
                weight = tl.load(at + depth[None, :].to(tl.int64) * in_stride, there, 0.0)
                made = tl.load(row + depth, depth < width, 0.0)
                total += weight.to(tl.float32) * made.to(tl.float32)[None, :]
            part = tl.sum(total, 1)
        tl.store(out_ptr + pair.to(tl.int64) * hidden + columns, part, inside)


@triton.jit
def _down_fp8_kernel(
    made_ptr, weight_ptr, scales_ptr, ids_ptr, out_ptr, hidden, width, num_experts,
    COLUMNS: tl.constexpr, SIZE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The same in 8 bits, all weights at once, eight of them in a word."""
    after_previous(EARLY)
    pair = tl.program_id(0)
    expert = tl.load(ids_ptr + pair)
    columns, words = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, SIZE // 8)
    inside = columns < hidden
    if (expert >= 0) & (expert < num_experts):
        num_words = width // 8
        at = weight_ptr.to(tl.pointer_type(tl.int64)) + words[None, :]
        at += (expert * hidden + columns[:, None]) * num_words
        weight = tl.load(at, inside[:, None] & (words[None, :] < num_words), 0)
        scales = tl.load(scales_ptr + expert * hidden + columns, inside, 0.0)
        depth = tl.arange(0, SIZE)
        made = tl.load(made_ptr + pair.to(tl.int64) * width + depth, depth < width, 0.0)
        made_scale = scale_of(made, 0)
        a, b, c, d = halves_of(made, made_scale, SIZE)
        part = tl.sum(times_eight(weight, a[None, :], b[None, :], c[None, :], d[None, :]), 1)
        part *= scales * made_scale * 64.0
        tl.store(out_ptr + pair.to(tl.int64) * hidden + columns, part, inside)


def experts_by_pairs(
    x: Tensor | Tokens,
    gate_up: Tensor | Fp8Tensor,
    down: Tensor | Fp8Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
) -> ExpertOutputs:
    """`unsummed_experts` in two kernels."""
    made = gate_up_by_pairs(x, gate_up, topk_ids)
    num_experts, hidden, width = down.shape
    out = made.new_empty(len(made), hidden)
    weight, scales = parts(down)
    is_whole = weight.stride(1) != 1
    size = int(triton.next_power_of_2(width))
    # else columns lie side by side in memory
    columns = max(1, _BYTES // (size * weight.element_size())) if is_whole else 64
    grid = (len(made), triton.cdiv(hidden, columns))
    if isinstance(down, Fp8Tensor):
        _down_fp8_kernel[grid](
            made, weight, scales, topk_ids, out, hidden, width, num_experts,
            COLUMNS=columns, SIZE=size, num_warps=4, **early_launch(made),
        )  # fmt: skip
    else:
        _down_kernel[grid](
            made, weight, topk_ids, out, hidden, width, num_experts, *weight.stride(),
            COLUMNS=columns, DEPTH=size if is_whole else 128, WHOLE=is_whole, num_warps=4,
            **early_launch(made),
        )  # fmt: skip
    return ExpertOutputs(out, None, topk_weights, topk_ids, num_experts)


def gate_up_by_pairs(x: Tensor | Tokens, gate_up: Tensor | Fp8Tensor, topk_ids: Tensor) -> Tensor:
    """silu(gate x) * (up x) of every pair: [pairs, width]."""
    num_experts, width, hidden = gate_up.shape[0], gate_up.shape[1] // 2, gate_up.shape[2]
    tokens, (weight, scales) = Tokens.of(x, gate_up), parts(gate_up)
    made = tokens.new(topk_ids.numel(), width)
    sizes = (hidden, width, num_experts, topk_ids.shape[1])
    if isinstance(gate_up, Tensor):
        columns, depth = 4, 1024
        _gate_up_kernel[(topk_ids.numel(), triton.cdiv(width, columns))](
            tokens.values, weight, topk_ids, made, *sizes, COLUMNS=columns, DEPTH=depth,
            num_warps=4, **early_launch(made),
        )  # fmt: skip
        return made
    size = int(triton.next_power_of_2(hidden))
    columns = max(1, _BYTES // (4 * size))
    _gate_up_fp8_kernel[(topk_ids.numel(), triton.cdiv(width, columns))](
        tokens.values, tokens.scales, weight, scales, topk_ids, made, *sizes, COLUMNS=columns,
        SIZE=size, num_warps=2, **early_launch(made),
    )  # fmt: skip
    return made
