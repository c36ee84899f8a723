"""The experts of a step of one or a few tokens: each (token, choice) pair reads its expert's
weights for itself, row by row, which needs no grouping and no matrix units."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.triton.launch import after_previous, early_launch


@triton.jit
def _gate_up_pair_kernel(
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
    at = weight_ptr + (expert * 2 * width + columns[:, None]) * hidden
    gates = tl.zeros([COLUMNS, DEPTH], tl.float32)
    ups = tl.zeros([COLUMNS, DEPTH], tl.float32)
    for begin in range(0, hidden, DEPTH):
        depth = begin + tl.arange(0, DEPTH)
        there = (columns[:, None] < width) & (depth[None, :] < hidden)
        gate = tl.load(at + depth[None, :], there, 0.0)
        up = tl.load(at + width * hidden + depth[None, :], there, 0.0)
        x = tl.load(x_row + depth, depth < hidden, 0.0)
        gates += gate.to(tl.float32) * x.to(tl.float32)[None, :]
        ups += up.to(tl.float32) * x.to(tl.float32)[None, :]
    gate_sum, up_sum = tl.sum(gates, 1), tl.sum(ups, 1)
    made = gate_sum * tl.sigmoid(gate_sum) * up_sum
    tl.store(out_ptr + pair.to(tl.int64) * width + columns, made, columns < width)


@triton.jit
def _down_pair_kernel(
    made_ptr, weight_ptr, ids_ptr, out_ptr, hidden, width, num_experts,
    expert_stride, out_stride, in_stride,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """COLUMNS of down @ made of one pair."""
    after_previous(EARLY)
    pair = tl.program_id(0)
    expert = tl.load(ids_ptr + pair)
    if (expert < 0) | (expert >= num_experts):
        return
    row = made_ptr + pair.to(tl.int64) * width
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = weight_ptr + expert * expert_stride + columns[:, None].to(tl.int64) * out_stride
    total = tl.zeros([COLUMNS, DEPTH], tl.float32)
    for begin in range(0, width, DEPTH):
        depth = begin + tl.arange(0, DEPTH)
        there = (columns[:, None] < hidden) & (depth[None, :] < width)
        weight = tl.load(at + depth[None, :].to(tl.int64) * in_stride, there, 0.0)
        made = tl.load(row + depth, depth < width, 0.0)
        total += weight.to(tl.float32) * made.to(tl.float32)[None, :]
    result = tl.sum(total, 1)
    tl.store(out_ptr + pair.to(tl.int64) * hidden + columns, result, columns < hidden)


def gate_up_by_pairs(x: Tensor, gate_up: Tensor, topk_ids: Tensor) -> Tensor:
    """silu(gate x) * (up x) of every pair: [pairs, width]."""
    num_experts, width, hidden = gate_up.shape[0], gate_up.shape[1] // 2, gate_up.shape[2]
    made = x.new_empty(topk_ids.numel(), width)
    columns, depth = 4, 1024
    _gate_up_pair_kernel[(topk_ids.numel(), triton.cdiv(width, columns))](
        x, gate_up, topk_ids, made, hidden, width, num_experts, topk_ids.shape[1],
        COLUMNS=columns, DEPTH=depth, num_warps=4, **early_launch(x),
    )  # fmt: skip
    return made


def down_by_pairs(made: Tensor, down: Tensor, topk_ids: Tensor) -> Tensor:
    """down @ made of every pair: [pairs, hidden]."""
    num_experts, hidden, width = down.shape
    out = made.new_empty(topk_ids.numel(), hidden)
    # Long along whichever dimension lies contiguous in memory.
    columns, depth = (64, 128) if down.stride(1) == 1 else (8, 512)
    _down_pair_kernel[(topk_ids.numel(), triton.cdiv(hidden, columns))](
        made, down, topk_ids, out, hidden, width, num_experts, *down.stride(),
        COLUMNS=columns, DEPTH=depth, num_warps=4, **early_launch(made),
    )  # fmt: skip
    return out
