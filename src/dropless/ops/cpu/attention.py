"""Paged attention on a CPU in float32.

Sequences with one query are the hot part, and bound by memory. A matrix product of one row per
head runs far below the memory's speed when keys stand `num_kv_heads` rows apart, so the keys of a
few sequences are gathered head by head into a buffer that stays in the processor's cache. The
values are not gathered at all: the weighted sum of cache rows is what an embedding bag computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dropless.ops.attention import PagedBatch, paged_attention

_GROUP_KEYS = 2048  # gathered at a time: 1.5 MiB for three heads of 64


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    """Some sequences with one query each, as if all were as long as the longest: beyond its end
    a sequence repeats its last token, so that no slot is read that nothing was written to."""

    sequences: Tensor  # [n] int64, also the places of their tokens
    key_rows: Tensor  # [n * num_kv_heads * length] int32 rows of the cache, head by head
    value_rows: Tensor  # [n * num_heads * length] int32, the same for each query head
    value_starts: Tensor  # [n * num_heads] int32, where each head's rows start
    mask: Tensor  # [n * num_kv_heads, heads per kv head, length] float32: 0, or -inf past the end


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One sequence with several queries."""

    tokens: slice
    slots: Tensor  # [length] int64
    mask: Tensor  # [queries, length] float32: 0, or -inf where a query must not look


@dataclass(frozen=True, slots=True)
class _Plan:
    decodes: list[_DecodeGroup]
    chunks: list[_Chunk]
    keys: Tensor  # [rows of the largest group, head_dim], written by every group of every layer
    is_one_group: bool  # of all the step's tokens, in their order


@paged_attention.register("cpu")
def paged_attention_cpu(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, scale: float
) -> Tensor:
    if not q.dtype == k_cache.dtype == torch.float32:
        return paged_attention.reference(q, k_cache, v_cache, batch, scale)
    plan = batch.once(_make_plan, q.shape[1], *k_cache.shape[1:])
    if plan.is_one_group:
        return _decode(q, k_cache, v_cache, plan.decodes[0], plan.keys, scale)
    out = q.new_empty(q.shape)
    for group in plan.decodes:
        queries = q.index_select(0, group.sequences)
        made = _decode(queries, k_cache, v_cache, group, plan.keys, scale)
        out.index_copy_(0, group.sequences, made)
    for chunk in plan.chunks:
        out[chunk.tokens] = _prefill(q[chunk.tokens], k_cache, v_cache, chunk, scale)
    return out


def _decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, group: _DecodeGroup, keys: Tensor, scale: float
) -> Tensor:
    """[n, num_heads, head_dim], the results of a group, whose queries `q` are."""
    head_dim = q.shape[-1]
    products, heads, length = group.mask.shape
    rows = keys[: len(group.key_rows)]
    torch.index_select(k_cache.view(-1, head_dim), 0, group.key_rows, out=rows)
    queries = q.reshape(products, heads, head_dim)
    transposed = rows.view(products, length, head_dim).transpose(1, 2)
    weights = torch.baddbmm(group.mask, queries, transposed, alpha=scale).softmax(-1)
    return F.embedding_bag(
        group.value_rows,
        v_cache.view(-1, head_dim),
        group.value_starts,
        mode="sum",
        per_sample_weights=weights.view(-1),
    ).view(-1, *q.shape[1:])


def _prefill(q: Tensor, k_cache: Tensor, v_cache: Tensor, chunk: _Chunk, scale: float) -> Tensor:
    """[queries, num_heads, head_dim]."""
    slots = (-1, *k_cache.shape[2:])
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k_cache.view(slots).index_select(0, chunk.slots).transpose(0, 1)[None],
        v_cache.view(slots).index_select(0, chunk.slots).transpose(0, 1)[None],
        attn_mask=chunk.mask,
        scale=scale,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)


def _make_plan(
    batch: PagedBatch, num_heads: int, block_size: int, num_kv_heads: int, head_dim: int
) -> _Plan:
    decodes = [
        _plan_group(batch, group, num_heads, block_size, num_kv_heads)
        for group in _group_by_length(batch.seq_lens_host[: batch.num_decodes])
    ]
    largest = max((len(group.key_rows) for group in decodes), default=0)
    keys = torch.empty(largest, head_dim)
    chunks = list(_plan_chunks(batch, block_size))
    is_one_group = batch.num_decodes == 1 and not chunks
    return _Plan(decodes, chunks, keys, is_one_group)


def _group_by_length(lengths: list[int]) -> Iterator[list[int]]:
    """Sequences of like lengths together, at most `_GROUP_KEYS` padded keys unless one alone has
    more."""
    group: list[int] = []
    for sequence in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group and lengths[group[0]] * (len(group) + 1) > _GROUP_KEYS:
            yield group
            group = []
        group.append(sequence)
    if group:
        yield group


def _plan_group(
    batch: PagedBatch, group: list[int], num_heads: int, block_size: int, num_kv_heads: int
) -> _DecodeGroup:
    sequences = torch.tensor(group)
    seq_lens = batch.seq_lens[sequences].unsqueeze(1)
    places = torch.arange(batch.seq_lens_host[group[0]])
    slots = _slots(batch.block_tables[sequences], places.minimum(seq_lens - 1), block_size)
    # int32 holds the rows of any cache below 256 GiB at 32 floats a head, and is read faster.
    kv_heads = torch.arange(num_kv_heads, dtype=torch.int32).unsqueeze(1)
    key_rows = slots.int().unsqueeze(1) * num_kv_heads + kv_heads
    group_size = num_heads // num_kv_heads
    value_rows = key_rows.repeat_interleave(group_size, dim=1).view(-1)
    past_end = (places >= seq_lens).repeat_interleave(num_kv_heads, dim=0).unsqueeze(1)
    mask = torch.zeros(past_end.shape).masked_fill_(past_end, float("-inf"))
    return _DecodeGroup(
        sequences=sequences,
        key_rows=key_rows.view(-1),
        value_rows=value_rows,
        value_starts=torch.arange(0, len(value_rows), len(places), dtype=torch.int32),
        mask=mask.repeat(1, group_size, 1),
    )


def _plan_chunks(batch: PagedBatch, block_size: int) -> Iterator[_Chunk]:
    start = batch.num_decodes
    for i in range(batch.num_decodes, len(batch.seq_lens_host)):
        query_len, seq_len = batch.query_lens_host[i], batch.seq_lens_host[i]
        mask = torch.full((query_len, seq_len), float("-inf")).triu_(seq_len - query_len + 1)
        slots = _slots(batch.block_tables[i], torch.arange(seq_len), block_size)
        yield _Chunk(slice(start, start + query_len), slots, mask)
        start += query_len


def _slots(block_tables: Tensor, places: Tensor, block_size: int) -> Tensor:
    """int64 slots of the tokens at `places` of sequences with these block tables."""
    blocks = block_tables.gather(-1, places // block_size).long()
    return blocks * block_size + places % block_size
