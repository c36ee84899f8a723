"""Every token's row to the places of its pairs, in one pass: read once, written once for each of
its experts."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.fp8 import FP8
from dropless.ops.moe import Grouping
from dropless.ops.triton.fp8 import scale_of, to_fp8
from dropless.ops.triton.launch import after_previous, early_launch, warps_of_row


@triton.jit
def _dispatch_kernel(
    x_ptr, places_ptr, ids_ptr, rows_ptr, scales_ptr, hidden, num_experts,
    TOP_K: tl.constexpr, QUANTIZED: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One token a program."""
    after_previous(EARLY)
    token = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < hidden
    row = tl.load(x_ptr + token.to(tl.int64) * hidden + columns, inside, 0.0)
    if QUANTIZED:
        scale = scale_of(row, 0)
        row = to_fp8(row, scale)
    for choice in tl.static_range(TOP_K):
        pair = token * TOP_K + choice
        expert = tl.load(ids_ptr + pair)
        if (expert >= 0) & (expert < num_experts):
            place = tl.load(places_ptr + pair).to(tl.int64)
            tl.store(rows_ptr + place * hidden + columns, row, inside)
            if QUANTIZED:
                tl.store(scales_ptr + place, scale)


def dispatch(x: Tensor, grouping: Grouping, topk_ids: Tensor, num_experts: int) -> Tensor:
    """x [T, hidden] in the order of the grouped pairs: [pairs, hidden]. Rows in no group are not
    defined."""
    rows = x.new_empty(topk_ids.numel(), x.shape[1])
    _dispatch(x, grouping, topk_ids, num_experts, rows, rows)
    return rows


def dispatch_quantized(
    x: Tensor, grouping: Grouping, topk_ids: Tensor, num_experts: int
) -> tuple[Tensor, Tensor]:
    """`dispatch` of `quantize_tokens(x)`: values [pairs, hidden] and scales [pairs]."""
    rows = torch.empty(topk_ids.numel(), x.shape[1], dtype=FP8, device=x.device)
    scales = torch.empty(len(rows), dtype=torch.float32, device=x.device)
    _dispatch(x, grouping, topk_ids, num_experts, rows, scales)
    return rows, scales


def _dispatch(
    x: Tensor, grouping: Grouping, topk_ids: Tensor, num_experts: int, rows: Tensor, scales: Tensor
) -> None:
    block = triton.next_power_of_2(x.shape[1])
    _dispatch_kernel[(len(x),)](
        x, grouping.places, topk_ids, rows, scales, x.shape[1], num_experts,
        TOP_K=topk_ids.shape[1], QUANTIZED=rows.dtype == FP8, BLOCK=block,
        num_warps=warps_of_row(block), **early_launch(x),
    )  # fmt: skip
