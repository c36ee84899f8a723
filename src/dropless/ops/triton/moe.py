"""The experts as one grouped product each way: no token waits for another expert's, none is
padded to a capacity. Three regimes by the number of tokens, see `unsummed_experts_cuda`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.activation import silu_mul
from dropless.ops.fp8 import Fp8Tensor, quantize_tokens
from dropless.ops.moe import (
    ExpertOutputs,
    Grouping,
    Routed,
    combined,
    fused_experts,
    unsummed_experts,
)
from dropless.ops.triton.dispatch import dispatch, dispatch_quantized
from dropless.ops.triton.fp8 import Tokens, has_whole_words, is_aligned, parts
from dropless.ops.triton.grouped import down_grouped, gate_up_grouped
from dropless.ops.triton.grouping import find_tile, group_pairs, num_tiles, padded
from dropless.ops.triton.launch import after_previous
from dropless.ops.triton.moe_pairs import experts_by_pairs
from dropless.ops.triton.tiles import Tile, fixed_tile, tile_for

# Up to so many pairs each reads its expert's weights for itself. Of 8 bits, which matrix units read
# with fewer instructions, up to half as many, if they are short: then it is launches that count.
_PAIRS = 8
_SHORT_WIDTH = 2048
# A tile of so many rows and more, of which but half are there, is computed as one of half as many.
_HALVED = tl.constexpr(64)
TILED_TOKENS = 512  # above so many arithmetic is the limit, not reading the weights


@triton.jit
def _gate_up_kernel(
    x_ptr, x_scales_ptr, weight_ptr, scales_ptr, pairs_ptr, offsets_ptr, out_ptr,
    hidden, width, num_experts, top_k,
    EXPERTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    SCALED: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A tile of silu(gate x) * (up x)."""
    after_previous(EARLY)
    expert, first_row, stop = find_tile(offsets_ptr, tl.program_id(0), EXPERTS, ROWS)
    if expert >= num_experts:
        return
    rows = (pairs_ptr, first_row, stop)
    if ROWS >= _HALVED and stop - first_row <= ROWS // 2:
        _gate_up_rows(
            x_ptr, x_scales_ptr, weight_ptr, scales_ptr, rows, out_ptr, hidden, width, expert,
            top_k, ROWS // 2, COLUMNS, DEPTH, SCALED, PRECISION,
        )  # fmt: skip
    else:
        _gate_up_rows(
            x_ptr, x_scales_ptr, weight_ptr, scales_ptr, rows, out_ptr, hidden, width, expert,
            top_k, ROWS, COLUMNS, DEPTH, SCALED, PRECISION,
        )  # fmt: skip


@triton.jit
def _gate_up_rows(
    x_ptr, x_scales_ptr, weight_ptr, scales_ptr, rows, out_ptr, hidden, width, expert, top_k,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    SCALED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gate and up share the loads of x. The weights are the left factor, for matrix units want 64
    rows there and need but 8 columns on the right."""
    pairs_ptr, first_row, stop = rows
    rows = first_row + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    tokens = tl.load(pairs_ptr + rows, rows < stop, 0) // top_k
    x_at = x_ptr + tokens[None, :].to(tl.int64) * hidden
    at = weight_ptr + (expert.to(tl.int64) * 2 * width + columns[:, None]) * hidden
    gate = tl.zeros([COLUMNS, ROWS], tl.float32)
    up = tl.zeros([COLUMNS, ROWS], tl.float32)
    for begin in range(0, hidden, DEPTH):
        depth = begin + tl.arange(0, DEPTH)
        x = tl.load(x_at + depth[:, None], (rows[None, :] < stop) & (depth[:, None] < hidden), 0.0)
        there = (columns[:, None] < width) & (depth[None, :] < hidden)
        w = tl.load(at + depth[None, :], there, 0.0)
        gate = tl.dot(w, x, gate, input_precision=PRECISION)
        w = tl.load(at + width * hidden + depth[None, :], there, 0.0)
        up = tl.dot(w, x, up, input_precision=PRECISION)
    if SCALED:
        x_scales = tl.load(x_scales_ptr + tokens)[None, :]
        scale_at = scales_ptr + expert * 2 * width + columns
        gate *= tl.load(scale_at, columns < width, 0.0)[:, None] * x_scales
        up *= tl.load(scale_at + width, columns < width, 0.0)[:, None] * x_scales
    made = gate * tl.sigmoid(gate) * up
    out_at = rows[None, :].to(tl.int64) * width + columns[:, None]
    tl.store(out_ptr + out_at, made, (rows[None, :] < stop) & (columns[:, None] < width))


@triton.jit
def _down_kernel(
    made_ptr, made_scales_ptr, weight_ptr, scales_ptr, pairs_ptr, offsets_ptr, out_ptr,
    hidden, width, num_experts, expert_stride, out_stride, in_stride,
    EXPERTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    SCALED: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A tile of down @ made, at the place of its pair."""
    after_previous(EARLY)
    expert, first_row, stop = find_tile(offsets_ptr, tl.program_id(0), EXPERTS, ROWS)
    if expert >= num_experts:
        return
    rows = (pairs_ptr, first_row, stop)
    weight_ptr += expert.to(tl.int64) * expert_stride
    scales_ptr += expert * hidden
    if ROWS >= _HALVED and stop - first_row <= ROWS // 2:
        _down_rows(
            made_ptr, made_scales_ptr, weight_ptr, scales_ptr, rows, out_ptr, hidden, width,
            out_stride, in_stride, ROWS // 2, COLUMNS, DEPTH, SCALED, PRECISION,
        )  # fmt: skip
    else:
        _down_rows(
            made_ptr, made_scales_ptr, weight_ptr, scales_ptr, rows, out_ptr, hidden, width,
            out_stride, in_stride, ROWS, COLUMNS, DEPTH, SCALED, PRECISION,
        )  # fmt: skip


@triton.jit
def _down_rows(
    made_ptr, made_scales_ptr, weight_ptr, scales_ptr, rows, out_ptr, hidden, width,
    out_stride, in_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    SCALED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    pairs_ptr, first_row, stop = rows
    rows = first_row + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    made_at = made_ptr + rows[None, :].to(tl.int64) * width
    at = weight_ptr + columns[:, None].to(tl.int64) * out_stride
    total = tl.zeros([COLUMNS, ROWS], tl.float32)
    for begin in range(0, width, DEPTH):
        depth = begin + tl.arange(0, DEPTH)
        inside = (rows[None, :] < stop) & (depth[:, None] < width)
        made = tl.load(made_at + depth[:, None], inside, 0.0)
        there = (columns[:, None] < hidden) & (depth[None, :] < width)
        w = tl.load(at + depth[None, :].to(tl.int64) * in_stride, there, 0.0)
        total = tl.dot(w, made, total, input_precision=PRECISION)
    if SCALED:
        made_scales = tl.load(made_scales_ptr + rows, rows < stop, 0.0)
        scales = tl.load(scales_ptr + columns, columns < hidden, 0.0)
        total *= scales[:, None] * made_scales[None, :]
    pairs = tl.load(pairs_ptr + rows, rows < stop, 0).to(tl.int64)
    inside = (rows[None, :] < stop) & (columns[:, None] < hidden)
    tl.store(out_ptr + pairs[None, :] * hidden + columns[:, None], total, inside)


@fused_experts.register("cuda")
def fused_experts_cuda(
    x: Tensor,
    gate_up: Tensor | Fp8Tensor,
    down: Tensor | Fp8Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
) -> Tensor:
    return combined(unsummed_experts_cuda(Routed(x, topk_weights, topk_ids), gate_up, down))


@unsummed_experts.register("cuda")
def unsummed_experts_cuda(
    routed: Routed, gate_up: Tensor | Fp8Tensor, down: Tensor | Fp8Tensor
) -> ExpertOutputs:
    """One or a few tokens: no grouping. Up to a few hundred: tiles, each weight read once. Beyond:
    grouped products at the speed of the matrix units."""
    x, topk_ids = routed.x.contiguous(), routed.topk_ids.contiguous()
    topk_weights = routed.topk_weights.contiguous()
    num_pairs = topk_ids.numel()
    known = routed.quantized
    tokens = x if known is None else Tokens.known(known, x.dtype)
    if goes_by_pairs(down, num_pairs):
        return experts_by_pairs(tokens, gate_up, down, topk_weights, topk_ids)
    grouping = routed.grouping or group_pairs(topk_ids, down.shape[0])
    if goes_by_tiles(down, x):
        tiles = _tile("gate_up", gate_up, num_pairs), _tile("down", down, num_pairs)
        return _by_tiles(tokens, gate_up, down, topk_weights, topk_ids, grouping, *tiles)
    return _by_groups(x, gate_up, down, topk_weights, topk_ids, grouping)


@fused_experts.register_invariant("cuda")
def fused_experts_invariant(
    x: Tensor,
    gate_up: Tensor | Fp8Tensor,
    down: Tensor | Fp8Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
) -> Tensor:
    """Tiles of one size for any number of tokens."""
    x, topk_ids, topk_weights = x.contiguous(), topk_ids.contiguous(), topk_weights.contiguous()
    grouping = group_pairs(topk_ids, down.shape[0])
    tiles = fixed_tile("gate_up", gate_up), fixed_tile("down", down)
    return combined(_by_tiles(x, gate_up, down, topk_weights, topk_ids, grouping, *tiles))


def goes_by_pairs(down: Tensor | Fp8Tensor, num_pairs: int) -> bool:
    """Whether so few pairs are computed one by one."""
    if isinstance(down, Tensor):
        return num_pairs <= _PAIRS
    hidden, width = down.shape[1:]
    is_in_words = has_whole_words(down) and hidden % 8 == 0  # hidden: inputs of gate and up
    return num_pairs <= _PAIRS // 2 and width <= _SHORT_WIDTH and is_in_words


def goes_by_tiles(down: Tensor | Fp8Tensor, x: Tensor) -> bool:
    """Whether tokens x, if they are not so few, are computed in tiles."""
    return len(x) <= TILED_TOKENS or x.dtype == torch.float32 or not is_aligned(down)


def _tile(op: str, weight: Tensor | Fp8Tensor, num_pairs: int) -> Tile:
    tile = tile_for(op, weight, num_pairs)
    assert tile is not None  # PyTorch has no product of this kind
    return tile


def gate_up_by_tiles(
    x: Tensor | Tokens, gate_up: Tensor | Fp8Tensor, grouping: Grouping, tile: Tile
) -> Tensor:
    """silu(gate x) * (up x) of the grouped pairs: [pairs, width]."""
    num_experts, width, hidden = gate_up.shape[0], gate_up.shape[1] // 2, gate_up.shape[2]
    num_pairs = len(grouping.pairs)
    tokens, (weights, scales) = Tokens.of(x, gate_up), parts(gate_up)
    made = tokens.new(num_pairs, width)
    grid = (num_tiles(num_pairs, num_experts, tile.rows), triton.cdiv(width, tile.columns))
    _gate_up_kernel[grid](
        tokens.values, tokens.scales, weights, scales, grouping.pairs, grouping.offsets, made,
        hidden, width, num_experts, num_pairs // len(tokens), EXPERTS=padded(num_experts),
        SCALED=isinstance(gate_up, Fp8Tensor), **tile.arguments(tokens.values),
    )  # fmt: skip
    return made


def down_by_tiles(made: Tensor, down: Tensor | Fp8Tensor, grouping: Grouping, tile: Tile) -> Tensor:
    """down @ made of the grouped pairs, each at its own place: [pairs, hidden]."""
    num_experts, hidden, width = down.shape
    num_pairs = len(grouping.pairs)
    out = made.new_empty(num_pairs, hidden)
    tokens, (weights, scales) = Tokens.of(made, down), parts(down)
    grid = (num_tiles(num_pairs, num_experts, tile.rows), triton.cdiv(hidden, tile.columns))
    _down_kernel[grid](
        tokens.values, tokens.scales, weights, scales, grouping.pairs, grouping.offsets, out,
        hidden, width, num_experts, *weights.stride(), EXPERTS=padded(num_experts),
        SCALED=isinstance(down, Fp8Tensor), **tile.arguments(made),
    )  # fmt: skip
    return out


def _by_tiles(
    x: Tensor | Tokens,
    gate_up: Tensor | Fp8Tensor,
    down: Tensor | Fp8Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    grouping: Grouping,
    gate_up_tile: Tile,
    down_tile: Tile,
) -> ExpertOutputs:
    """`fused_experts` in tiles of these sizes."""
    made = gate_up_by_tiles(x, gate_up, grouping, gate_up_tile)
    out = down_by_tiles(made, down, grouping, down_tile)
    return ExpertOutputs(out, None, topk_weights, topk_ids, down.shape[0])


def _by_groups(
    x: Tensor,
    gate_up: Tensor | Fp8Tensor,
    down: Tensor | Fp8Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    grouping: Grouping,
) -> ExpertOutputs:
    """`fused_experts` with every expert's rows side by side in memory: in 16 bits by PyTorch's
    CUTLASS product, which is as fast as ours there; ours in 8 bits, which is faster."""
    num_experts = down.shape[0]
    if isinstance(gate_up, Fp8Tensor):
        assert isinstance(down, Fp8Tensor)  # both are of one kind
        rows, row_scales = dispatch_quantized(x, grouping, topk_ids, num_experts)
        made, made_scales = quantize_tokens(gate_up_grouped(rows, row_scales, gate_up, grouping))
        out = down_grouped(made, made_scales, down, grouping)
    else:
        assert isinstance(down, Tensor)
        ends = grouping.offsets[1 : num_experts + 1]
        rows = dispatch(x, grouping, topk_ids, num_experts)
        made = silu_mul(torch._grouped_mm(rows, gate_up.transpose(1, 2), offs=ends))
        out = torch._grouped_mm(made, down.transpose(1, 2), offs=ends)
    return ExpertOutputs(out, grouping.places, topk_weights, topk_ids, num_experts)
