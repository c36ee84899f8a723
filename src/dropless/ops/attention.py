"""Causal attention of a step's tokens over the paged KV cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
from torch import Tensor

from dropless.ops.registry import Op
from dropless.ops.rope import rope_and_cache

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class PagedBatch:
    """Where the tokens of one step stand in their sequences and in the cache, for all layers.

    The step's tokens are in a row, sequence after sequence; the first `num_decodes` sequences have
    exactly one. Token j of sequence i stands at position seq_lens[i] - query_lens[i] + j.

    In a graph, which serves many steps, only the device knows the lengths: `num_decodes` and
    `num_chunks` are at least as many as there can be, and a sequence may have no token at all.
    """

    slot_mapping: Tensor  # [T] int64, block * block_size + offset of each token
    block_tables: Tensor  # [num_seqs, blocks of the longest] int32
    query_start: Tensor  # [num_seqs + 1] int32, cumulative
    seq_lens: Tensor  # [num_seqs] int32, this step's tokens included
    num_decodes: int
    num_chunks: int  # sequences with several tokens
    query_lens_host: list[int]  # [num_seqs]; empty in a graph
    seq_lens_host: list[int]  # [num_seqs], equal to seq_lens; empty in a graph
    _derived: dict[object, object] = field(default_factory=dict, repr=False)

    def once(self, derive: Callable[..., T], *args: int) -> T:
        """`derive(self, *args)`, computed by the step's first layer and kept for the others."""
        key = (derive, args)
        if key not in self._derived:
            self._derived[key] = derive(self, *args)
        return cast(T, self._derived[key])


@Op
def paged_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, scale: float
) -> Tensor:
    """softmax(scale * q k^T) v of every token over its sequence up to itself, in float32.

    Args:
        q: [T, num_heads, head_dim].
        k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_dim]; the step's own keys and
            values are in them already. num_heads is a multiple of num_kv_heads: query head h reads
            head h // (num_heads / num_kv_heads). Slots beyond a sequence's end may hold anything.
        scale: factor of the scores before the softmax.

    Returns: [T, num_heads, head_dim] in q's dtype.
    """
    out = torch.empty_like(q)
    start = 0
    for i, (query_len, seq_len) in enumerate(
        zip(batch.query_lens_host, batch.seq_lens_host, strict=True)
    ):
        blocks = batch.block_tables[i, : -(-seq_len // k_cache.shape[1])].long()
        keys = k_cache[blocks].flatten(0, 1)[:seq_len].float()
        values = v_cache[blocks].flatten(0, 1)[:seq_len].float()
        tokens = slice(start, start + query_len)
        out[tokens] = _attend(q[tokens].float(), keys, values, scale).to(q.dtype)
        start += query_len
    return out


@Op
def rotary_attention(
    qkv: Tensor,
    rotary: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: PagedBatch,
    scale: float,
    *,
    num_heads: int,
    num_kv_heads: int,
    clip: float | None,
) -> Tensor:
    """`rope_and_cache`, then `paged_attention` of the rotated queries: [T, num_heads, head_dim]."""
    q = rope_and_cache.reference(
        qkv, rotary, k_cache, v_cache, batch.slot_mapping,
        num_heads=num_heads, num_kv_heads=num_kv_heads, clip=clip,
    )  # fmt: skip
    return paged_attention.reference(q, k_cache, v_cache, batch, scale)


@rotary_attention.register("cpu")
def rotate_then_attend(
    qkv: Tensor,
    rotary: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: PagedBatch,
    scale: float,
    *,
    num_heads: int,
    num_kv_heads: int,
    clip: float | None,
) -> Tensor:
    """By the two ops."""
    q = rope_and_cache(
        qkv, rotary, k_cache, v_cache, batch.slot_mapping,
        num_heads=num_heads, num_kv_heads=num_kv_heads, clip=clip,
    )  # fmt: skip
    return paged_attention(q, k_cache, v_cache, batch, scale)


@rotary_attention.register_invariant("cpu")
@rotary_attention.register_invariant("cuda")
def rotate_then_attend_invariant(
    qkv: Tensor,
    rotary: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: PagedBatch,
    scale: float,
    *,
    num_heads: int,
    num_kv_heads: int,
    clip: float | None,
) -> Tensor:
    q = rope_and_cache.invariant(
        qkv, rotary, k_cache, v_cache, batch.slot_mapping,
        num_heads=num_heads, num_kv_heads=num_kv_heads, clip=clip,
    )  # fmt: skip
    return paged_attention.invariant(q, k_cache, v_cache, batch, scale)


def _attend(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """One sequence's last `len(q)` tokens over all its keys and values."""
    grouped = q.view(len(q), keys.shape[1], -1, q.shape[-1])
    scores = torch.einsum("qhgd,khd->hgqk", grouped, keys) * scale
    query_len, seq_len = scores.shape[-2:]
    hidden = torch.ones(query_len, seq_len, dtype=torch.bool, device=q.device)
    scores = scores.masked_fill(hidden.triu(seq_len - query_len + 1), float("-inf"))
    return torch.einsum("hgqk,khd->qhgd", scores.softmax(-1), values).flatten(1, 2)
