"""The experts' products of many tokens in 8 bits, at the speed of the matrix units: their operands
come by Hopper's tensor memory accelerator, and a program stays for one tile after another."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.moe import Grouping
from dropless.ops.triton.grouping import find_tile, padded

# Measured on DBRX's shapes. A tile of gate and up has as many columns of each.
_ROWS, _GATE_UP_COLUMNS, _DOWN_COLUMNS, _DEPTH = 128, 128, 256, 128
_TOGETHER = 8  # tiles of rows that walk the columns together, and share what the L2 cache holds


@triton.jit
def _place_of(tile, row_tiles, column_tiles, TOGETHER: tl.constexpr):
    """A tile's place among those of rows and of columns."""
    band = TOGETHER * column_tiles
    first = (tile // band) * TOGETHER
    size = tl.minimum(row_tiles - first, TOGETHER)
    return first + (tile % band) % size, (tile % band) // size


@triton.jit
def _count_row_tiles(offsets_ptr, EXPERTS: tl.constexpr, ROWS: tl.constexpr):
    experts = tl.arange(0, EXPERTS)
    counts = tl.load(offsets_ptr + experts + 1) - tl.load(offsets_ptr + experts)
    return tl.sum(tl.cdiv(counts, ROWS), 0)


@triton.jit
def _gate_up_kernel(
    rows_desc, weight_desc, row_scales_ptr, scales_ptr, offsets_ptr, out_ptr, hidden, width,
    EXPERTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    """Tiles of silu(gate x) * (up x). A tile reads beyond its expert's rows and columns, and does
    not store what that gives. Set up early (`after_previous`) it took a tenth longer."""
    row_tiles = _count_row_tiles(offsets_ptr, EXPERTS, ROWS)
    column_tiles = tl.cdiv(width, COLUMNS)
    for tile in range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0)):
        row_tile, column_tile = _place_of(tile, row_tiles, column_tiles, TOGETHER)
        expert, first_row, stop = find_tile(offsets_ptr, row_tile, EXPERTS, ROWS)
        first_output = expert * 2 * width + column_tile * COLUMNS
        gate = tl.zeros([ROWS, COLUMNS], tl.float32)
        up = tl.zeros([ROWS, COLUMNS], tl.float32)
        for depth in range(0, hidden, DEPTH):
            x = rows_desc.load([first_row, depth])
            gate = tl.dot(x, weight_desc.load([first_output, depth]).T, gate)
            up = tl.dot(x, weight_desc.load([first_output + width, depth]).T, up)
        rows = first_row + tl.arange(0, ROWS)
        columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
        row_scales = tl.load(row_scales_ptr + rows, rows < stop, 0.0)[:, None]
        scale_at = scales_ptr + expert * 2 * width + columns
        gate *= tl.load(scale_at, columns < width, 0.0)[None, :] * row_scales
        up *= tl.load(scale_at + width, columns < width, 0.0)[None, :] * row_scales
        made = gate * tl.sigmoid(gate) * up
        out_at = rows[:, None].to(tl.int64) * width + columns[None, :]
        tl.store(out_ptr + out_at, made, (rows[:, None] < stop) & (columns[None, :] < width))


@triton.jit
def _down_kernel(
    made_desc, weight_desc, row_scales_ptr, scales_ptr, offsets_ptr, out_ptr, hidden, width,
    EXPERTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    """Tiles of down @ made."""
    row_tiles = _count_row_tiles(offsets_ptr, EXPERTS, ROWS)
    column_tiles = tl.cdiv(hidden, COLUMNS)
    # flatten: the next tile's operands are on their way while this one is stored
    for tile in tl.range(
        tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0), flatten=True
    ):
        row_tile, column_tile = _place_of(tile, row_tiles, column_tiles, TOGETHER)
        expert, first_row, stop = find_tile(offsets_ptr, row_tile, EXPERTS, ROWS)
        first_column = column_tile * COLUMNS
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for depth in range(0, width, DEPTH):
            weight = weight_desc.load([expert * hidden + first_column, depth])
            total = tl.dot(made_desc.load([first_row, depth]), weight.T, total)
        rows = first_row + tl.arange(0, ROWS)
        columns = first_column + tl.arange(0, COLUMNS)
        total *= tl.load(row_scales_ptr + rows, rows < stop, 0.0)[:, None]
        scale_at = scales_ptr + expert * hidden + columns
        total *= tl.load(scale_at, columns < hidden, 0.0)[None, :]
        out_at = rows[:, None].to(tl.int64) * hidden + columns[None, :]
        tl.store(out_ptr + out_at, total, (rows[:, None] < stop) & (columns[None, :] < hidden))


def gate_up_grouped(
    rows: Tensor, row_scales: Tensor, gate_up: Fp8Tensor, grouping: Grouping
) -> Tensor:
    """silu(gate x) * (up x) of grouped rows [pairs, hidden] in 8 bits with their scales [pairs]:
    [pairs, width] bfloat16. Rows in no group are not defined. Sizes are multiples of 16."""
    num_experts, width, hidden = gate_up.shape[0], gate_up.shape[1] // 2, gate_up.shape[2]
    out = rows.new_empty(len(rows), width, dtype=torch.bfloat16)
    _gate_up_kernel[(_num_programs(rows.device),)](
        TensorDescriptor.from_tensor(rows, [_ROWS, _DEPTH]),
        TensorDescriptor.from_tensor(
            gate_up.values.view(-1, hidden), [_GATE_UP_COLUMNS, _DEPTH]
        ),
        row_scales, gate_up.scales, grouping.offsets, out, hidden, width,
        EXPERTS=padded(num_experts), ROWS=_ROWS, COLUMNS=_GATE_UP_COLUMNS, DEPTH=_DEPTH,
        TOGETHER=_TOGETHER, num_warps=8, num_stages=4,
    )  # fmt: skip
    return out


def down_grouped(made: Tensor, made_scales: Tensor, down: Fp8Tensor, grouping: Grouping) -> Tensor:
    """down @ made of grouped rows [pairs, width]: [pairs, hidden], as `gate_up_grouped`."""
    num_experts, hidden, width = down.shape
    out = made.new_empty(len(made), hidden, dtype=torch.bfloat16)
    _down_kernel[(_num_programs(made.device),)](
        TensorDescriptor.from_tensor(made, [_ROWS, _DEPTH]),
        TensorDescriptor.from_tensor(down.values.view(-1, width), [_DOWN_COLUMNS, _DEPTH]),
        made_scales, down.scales, grouping.offsets, out, hidden, width,
        EXPERTS=padded(num_experts), ROWS=_ROWS, COLUMNS=_DOWN_COLUMNS, DEPTH=_DEPTH,
        TOGETHER=_TOGETHER, num_warps=8, num_stages=3,
    )  # fmt: skip
    return out


@cache
def _num_programs(device: torch.device) -> int:
    """One on each multiprocessor, whose shared memory it fills."""
    return torch.cuda.get_device_properties(device).multi_processor_count
