"""Linear layers of few tokens, which read a weight at the memory's speed; cuBLAS has the rest."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.linear import linear
from dropless.ops.moe import ExpertOutputs
from dropless.ops.triton.combine import operands_of, row_or_sum
from dropless.ops.triton.fp8 import (
    Tokens,
    halves_of,
    has_whole_words,
    is_aligned,
    parts,
    scale_of,
    times_eight,
)
from dropless.ops.triton.launch import after_previous, arrives_last, counters, early_launch
from dropless.ops.triton.norm import NormBefore, norm_of, stream_with
from dropless.ops.triton.tiles import Tile, fixed_tile, tile_for

MAX_TILE_TOKENS = 256
_VECTOR_WEIGHTS = 1 << 16  # which a program holds at once
_PLAIN_VECTOR_WEIGHTS = 1 << 14  # of one that does little with them: in 16 bits, without a norm
_VECTOR_INPUTS = 1 << 15  # of one output, beyond which its registers do not suffice
_NORMING_PROGRAMS = 2 * 132  # beyond, a norm in each takes more time than a kernel for it


@triton.jit
def _vector_kernel(
    x_ptr, topk_weights_ptr, ids_ptr, residual_ptr, norm_weight_ptr, summed_ptr, eps,
    weight_ptr, scales_ptr, bias_ptr, out_ptr, size, num_outputs, num_experts,
    SIZE: tl.constexpr, COLUMNS: tl.constexpr, TOP_K: tl.constexpr, NORMED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, CENTRED: tl.constexpr, SCALED: tl.constexpr, HAS_BIAS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """COLUMNS outputs of one token. The weights, if SCALED eight in a word, are on their way before
    the kernel that makes x has ended. If NORMED, every program makes the norm of x and the residual
    for itself; with TOP_K, x is what the token's experts made."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, SIZE)
    inside = columns < num_outputs
    rows = columns[:, None].to(tl.int64)
    if SCALED:
        words = tl.arange(0, SIZE // 8)[None, :]
        at = weight_ptr.to(tl.pointer_type(tl.int64)) + rows * (size // 8) + words
        w = tl.load(at, inside[:, None] & (words < size // 8), 0)
        scales = tl.load(scales_ptr + columns, inside, 0.0)
    else:
        there = inside[:, None] & (depth[None, :] < size)
        w = tl.load(weight_ptr + rows * size + depth[None, :], there, 0.0)
    if NORMED:
        norm_weight = tl.load(norm_weight_ptr + depth, depth < size, 0.0)
    after_previous(EARLY)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + depth, depth < size, 0.0)
    token = tl.full((), 0, tl.int32)  # the only one
    x = row_or_sum(
        x_ptr, x_ptr, topk_weights_ptr, ids_ptr, token, depth, depth < size, size, num_experts,
        TOP_K, False,
    )  # fmt: skip
    if NORMED:
        if HAS_RESIDUAL:
            x = stream_with(x, residual)
        if HAS_RESIDUAL or TOP_K > 0:
            tl.store(summed_ptr + depth, x, (depth < size) & (tl.program_id(0) == 0))
        wide = x.to(tl.float32)
        x = norm_of(wide, norm_weight, depth < size, size, eps, CENTRED).to(x.dtype)
    if SCALED:
        scale = scale_of(x, 0)
        a, b, c, d = halves_of(x, scale, SIZE)
        out = tl.sum(times_eight(w, a[None, :], b[None, :], c[None, :], d[None, :]), 1)
        out *= scales * scale * 64.0
    else:
        out = tl.sum(w.to(tl.float32) * x.to(tl.float32)[None, :], 1)
    if HAS_BIAS:
        out += tl.load(bias_ptr + columns, inside, 0.0).to(tl.float32)
    tl.store(out_ptr + columns, out, inside)


@triton.jit(do_not_specialize=["num_tokens"])
def _tile_kernel(
    x_ptr, x_scales_ptr, weight_ptr, scales_ptr, bias_ptr, out_ptr, sums_ptr, counters_ptr,
    num_tokens, size, num_outputs,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, SPLITS: tl.constexpr,
    SCALED: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """COLUMNS outputs of ROWS tokens, the weights as the left factor. With SPLITS, each program has
    a part of the inputs; the last of a tile to end adds the parts up, always in the same order."""
    after_previous(EARLY)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x_at = x_ptr + rows[None, :].to(tl.int64) * size
    at = weight_ptr + columns[:, None].to(tl.int64) * size
    out = tl.zeros([COLUMNS, ROWS], tl.float32)
    split = tl.program_id(2)
    part = tl.cdiv(tl.cdiv(size, SPLITS), DEPTH) * DEPTH
    for begin in range(split * part, tl.minimum(size, (split + 1) * part), DEPTH):
        depth = begin + tl.arange(0, DEPTH)
        there = (columns[:, None] < num_outputs) & (depth[None, :] < size)
        w = tl.load(at + depth[None, :], there, 0.0)
        x = tl.load(
            x_at + depth[:, None], (rows[None, :] < num_tokens) & (depth[:, None] < size), 0.0
        )
        out = tl.dot(w, x, out, input_precision=PRECISION)
    inside = (columns[:, None] < num_outputs) & (rows[None, :] < num_tokens)
    if SPLITS > 1:
        tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        at = tl.arange(0, COLUMNS)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
        tile_sums = sums_ptr + tile * SPLITS * COLUMNS * ROWS + at
        tl.store(tile_sums + split * COLUMNS * ROWS, out)
        if not arrives_last(counters_ptr + tile, SPLITS):
            return
        out = tl.zeros([COLUMNS, ROWS], tl.float32)
        for other in tl.static_range(SPLITS):
            out += tl.load(tile_sums + other * COLUMNS * ROWS, cache_modifier=".cg")
    if SCALED:
        x_scales = tl.load(x_scales_ptr + rows, rows < num_tokens, 0.0)
        scales = tl.load(scales_ptr + columns, columns < num_outputs, 0.0)
        out *= scales[:, None] * x_scales[None, :]
    if HAS_BIAS:
        bias = tl.load(bias_ptr + columns, columns < num_outputs, 0.0)
        out += bias.to(tl.float32)[:, None]
    tl.store(out_ptr + rows[None, :].to(tl.int64) * num_outputs + columns[:, None], out, inside)


@linear.register("cuda")
def linear_cuda(x: Tensor, weight: Tensor | Fp8Tensor, bias: Tensor | None = None) -> Tensor:
    if x.dtype == torch.float32 and isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    x = x.contiguous()
    if len(x) == 1 and weight.shape[1] <= _VECTOR_INPUTS and has_whole_words(weight):
        return linear_by_vector(x, weight, bias)[0]
    return linear_of(x, weight, bias)


def linear_of(x: Tensor | Tokens, weight: Tensor | Fp8Tensor, bias: Tensor | None) -> Tensor:
    """`linear` by whatever is fastest for so many tokens."""
    tile = None
    if len(x) <= MAX_TILE_TOKENS:
        tile = tile_for("linear", weight, len(x))
    elif isinstance(weight, Fp8Tensor) and not is_aligned(weight):
        tile = Tile(64, 64, 128)  # cuBLAS refuses such sizes
    if tile is None:
        return linear_by_library(x, weight, bias)
    return linear_by_tiles(x, weight, bias, tile)


@linear.register_invariant("cuda")
def linear_invariant(x: Tensor, weight: Tensor | Fp8Tensor, bias: Tensor | None = None) -> Tensor:
    """Tiles of one size for any number of tokens, each with all of the inputs."""
    return linear_by_tiles(x.contiguous(), weight, bias, fixed_tile("linear", weight))


def linear_by_library(
    x: Tensor | Tokens, weight: Tensor | Fp8Tensor, bias: Tensor | None = None
) -> Tensor:
    """`linear` by cuBLAS."""
    tokens = Tokens.of(x, weight)
    if isinstance(weight, Tensor):
        return F.linear(tokens.values, weight, bias)
    return torch._scaled_mm(
        tokens.values, weight.values.t(), tokens.scales[:, None], weight.scales[None, :],
        bias=bias, out_dtype=tokens.dtype, use_fast_accum=True,
    )  # fmt: skip


def linear_by_vector(
    x: Tensor | ExpertOutputs,
    weight: Tensor | Fp8Tensor,
    bias: Tensor | None,
    norm: NormBefore | None = None,
) -> tuple[Tensor, Tensor]:
    """`linear` of one token, without matrix units, and the stream; without a norm that is x. What
    experts made is in the order of pairs, and normed. (Two tokens in one program: measured, no
    faster than tiles where rows are not of 8192.)"""
    num_outputs, size = weight.shape
    assert isinstance(x, Tensor) or (x.places is None and norm is not None)
    made, _, topk_weights, topk_ids, num_experts, top_k = operands_of(x)
    out = made.new_empty(1, num_outputs)
    residual = None if norm is None else norm.residual
    is_new = residual is not None or top_k > 0
    stream = made.new_empty(1, size) if is_new else made
    values, scales = parts(weight)
    is_plain = isinstance(weight, Tensor) and norm is None
    columns = _vector_columns(weight, _PLAIN_VECTOR_WEIGHTS if is_plain else _VECTOR_WEIGHTS)
    _vector_kernel[(triton.cdiv(num_outputs, columns),)](
        made, topk_weights, topk_ids, made if residual is None else residual,
        made if norm is None else norm.weight, stream, 0.0 if norm is None else norm.eps,
        values, scales, made if bias is None else bias, out, size, num_outputs, num_experts,
        SIZE=triton.next_power_of_2(size), COLUMNS=columns, TOP_K=top_k, NORMED=norm is not None,
        HAS_RESIDUAL=residual is not None, CENTRED=norm is not None and norm.centred,
        SCALED=isinstance(weight, Fp8Tensor), HAS_BIAS=bias is not None,
        num_warps=4 if is_plain else 8 * values.element_size(), **early_launch(made),
    )  # fmt: skip
    return out, stream


def _vector_columns(weight: Tensor | Fp8Tensor, num_weights: int) -> int:
    """Outputs of one program that holds so many weights."""
    return max(1, num_weights // int(triton.next_power_of_2(weight.shape[1])))


def takes_norm(weight: Tensor | Fp8Tensor) -> bool:
    """Whether so few programs multiply one token that each may make its norm."""
    if weight.shape[1] > _VECTOR_INPUTS // 2 or not has_whole_words(weight):
        return False
    return weight.shape[0] <= _NORMING_PROGRAMS * _vector_columns(weight, _VECTOR_WEIGHTS)


def linear_by_tiles(
    x: Tensor | Tokens, weight: Tensor | Fp8Tensor, bias: Tensor | None, tile: Tile
) -> Tensor:
    """`linear` with matrix units."""
    num_outputs, size = weight.shape
    tokens, (weights, scales) = Tokens.of(x, weight), parts(weight)
    values = tokens.values
    out = tokens.new(len(tokens), num_outputs)
    grid = (triton.cdiv(len(tokens), tile.rows), triton.cdiv(num_outputs, tile.columns))
    sums_size = math.prod(grid) * tile.splits * tile.rows * tile.columns if tile.splits > 1 else 0
    sums = torch.empty(sums_size, dtype=torch.float32, device=values.device)
    num_counters = math.prod(grid) if tile.splits > 1 else 0
    _tile_kernel[(*grid, tile.splits)](
        values, tokens.scales, weights, scales, values if bias is None else bias, out, sums,
        counters(values.device, num_counters), len(tokens), size, num_outputs,
        SPLITS=tile.splits, SCALED=isinstance(weight, Fp8Tensor), HAS_BIAS=bias is not None,
        **tile.arguments(values),
    )  # fmt: skip
    return out
