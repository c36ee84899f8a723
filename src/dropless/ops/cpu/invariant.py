"""Batch-invariant versions for CPUs.

What PyTorch's libraries round depends on shapes: a matrix product adds up in another order for
another number of rows. So everything that adds up is computed in pieces of one fixed shape, padded,
and every other operation gives an element what it would get alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dropless.ops.activation import silu_mul
from dropless.ops.attention import PagedBatch, paged_attention
from dropless.ops.fp8 import Fp8Tensor, quantize_tokens
from dropless.ops.half_linear import PackedHalf, half_linear
from dropless.ops.linear import linear
from dropless.ops.moe import (
    ExpertOutputs,
    combined,
    fused_experts,
    fused_experts_by,
    route,
    route_by,
)
from dropless.ops.norm import layer_norm, rms_norm, stream_of
from dropless.ops.rope import rope_and_cache

_ROWS = 16  # of every product: fewer waste less on a single token, more read weights less often
_KEYS = 64  # of every product of attention


def _in_pieces(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`product` of `_ROWS` rows of x [T, in] at a time, zeros behind the last: [T, out]."""
    pieces = list(torch.split(x, _ROWS))
    missing = _ROWS - len(pieces[-1])
    if missing:
        pieces[-1] = F.pad(pieces[-1], (0, 0, 0, missing))
    return torch.cat([product(piece.contiguous()) for piece in pieces])[: len(x)]


@linear.register_invariant("cpu")
def linear_invariant(x: Tensor, weight: Tensor | Fp8Tensor, bias: Tensor | None = None) -> Tensor:
    if isinstance(weight, Tensor):
        return _in_pieces(lambda rows: F.linear(rows, weight, bias), x)
    values, scales = quantize_tokens.reference(x)
    wide = weight.values.float()
    out = _in_pieces(lambda rows: F.linear(rows, wide), values.float())
    out = out * weight.scales * scales[:, None]
    return (out if bias is None else out + bias).to(x.dtype)


@half_linear.register_invariant("cpu")
def half_linear_invariant(x: Tensor, weight: PackedHalf) -> Tensor:
    if weight.blocks is None:
        return linear_invariant(x, weight.unpack())
    return _in_pieces(lambda rows: half_linear(rows, weight), x)


@silu_mul.register_invariant("cpu")
def silu_mul_invariant(gate_up: Tensor) -> Tensor:
    """Of operations that round each element by itself: `F.silu` computes the last few of a row, or
    of a thread's part, in another way."""
    gate, up = gate_up.chunk(2, dim=-1)
    wide = gate.float()
    return (wide / (1.0 + (-wide).exp())).to(gate_up.dtype) * up


@route.register_invariant("cpu")
def route_invariant(
    x: Tensor,
    router_weight: Tensor,
    top_k: int,
    norm_p: float | None,
    topk_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return route_by(linear_invariant, x, router_weight, top_k, norm_p, topk_ids)


@fused_experts.register_invariant("cpu")
def fused_experts_invariant(
    x: Tensor,
    gate_up: Tensor | Fp8Tensor,
    down: Tensor | Fp8Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
) -> Tensor:
    return fused_experts_by(
        linear_invariant, silu_mul_invariant, x, gate_up, down, topk_weights, topk_ids
    )


@rms_norm.register_invariant("cpu")
def rms_norm_invariant(
    x: Tensor | ExpertOutputs, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The root of the mean square is the deviation of [x, -x]; its kernel takes row by row."""
    summed = stream_of(combined(x), residual)
    wide = summed.float()
    mirrored = torch.cat((wide, -wide), dim=-1)
    normed = torch.layer_norm(mirrored, mirrored.shape[-1:], None, None, eps)
    return normed[:, : len(weight)].to(summed.dtype) * weight, summed


@layer_norm.register_invariant("cpu")
def layer_norm_invariant(
    x: Tensor | ExpertOutputs, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    summed = stream_of(combined(x), residual)
    return torch.layer_norm(summed, weight.shape, weight, None, eps), summed


# Single products and sums, each rounded by itself.
rope_and_cache.register_invariant("cpu")(rope_and_cache.reference)


@dataclass(frozen=True, slots=True)
class _Tile:
    """Up to `_ROWS` queries of one sequence, and the keys up to its last one, padded with that."""

    tokens: slice
    slots: Tensor  # [blocks * _KEYS] int64
    mask: Tensor  # [_ROWS, blocks * _KEYS] float32: 0, or -inf where a query must not look


@paged_attention.register_invariant("cpu")
def paged_attention_invariant(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, scale: float
) -> Tensor:
    """Keys beyond a query's place get weights of exactly 0, so it does not matter how many follow:
    a sum over `_KEYS` of them changes nothing."""
    out = torch.empty_like(q)
    for tile in batch.once(_make_tiles, k_cache.shape[1]):
        out[tile.tokens] = _attend(q[tile.tokens], k_cache, v_cache, tile, scale)
    return out


def _attend(q: Tensor, k_cache: Tensor, v_cache: Tensor, tile: _Tile, scale: float) -> Tensor:
    """[queries, num_heads, head_dim] in q's dtype."""
    num_queries, num_heads, head_dim = q.shape
    num_kv_heads, num_blocks = k_cache.shape[2], len(tile.slots) // _KEYS

    def blocks(cache: Tensor) -> Tensor:  # [blocks, kv heads, keys, head_dim], one after another
        lines = cache.view(-1, num_kv_heads, head_dim).index_select(0, tile.slots).float()
        return lines.view(num_blocks, _KEYS, num_kv_heads, head_dim).transpose(1, 2).contiguous()

    padded = F.pad(q.float(), (0, 0, 0, 0, 0, _ROWS - num_queries))
    grouped = padded.view(_ROWS, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    rows = grouped.reshape(num_kv_heads, -1, head_dim)  # of each key head: group * _ROWS
    scores = torch.bmm(rows.repeat(num_blocks, 1, 1), blocks(k_cache).flatten(0, 1).mT)
    scores = scores.view(num_blocks, num_kv_heads, -1, _ROWS, _KEYS).permute(1, 2, 3, 0, 4)
    masked = scores.flatten(3) * scale + tile.mask  # [kv heads, group, _ROWS, keys of all blocks]
    weights = masked.softmax(-1).view(num_kv_heads, -1, num_blocks, _KEYS)
    mixed = torch.zeros(num_kv_heads, weights.shape[1], head_dim)
    for i, values in enumerate(blocks(v_cache)):
        mixed.baddbmm_(weights[:, :, i].contiguous(), values)
    return mixed.view(num_heads, _ROWS, head_dim).transpose(0, 1)[:num_queries].to(q.dtype)


def _make_tiles(batch: PagedBatch, block_size: int) -> list[_Tile]:
    return list(_each_tile(batch, block_size))


def _each_tile(batch: PagedBatch, block_size: int) -> Iterator[_Tile]:
    start = 0
    for i, (query_len, seq_len) in enumerate(
        zip(batch.query_lens_host, batch.seq_lens_host, strict=True)
    ):
        for first in range(0, query_len, _ROWS):
            count = min(_ROWS, query_len - first)
            own = seq_len - query_len + first + torch.arange(_ROWS).clamp_(max=count - 1)
            last = int(own[-1])
            places = torch.arange(-(-(last + 1) // _KEYS) * _KEYS)
            near = places.clamp(max=last)
            blocks = batch.block_tables[i][near // block_size].long()
            mask = torch.zeros(_ROWS, len(places))
            mask.masked_fill_(places > own[:, None], float("-inf"))
            tokens = slice(start + first, start + first + count)
            yield _Tile(tokens, blocks * block_size + near % block_size, mask)
        start += query_len
