"""Paged attention: single queries split over their keys, chunks of queries in tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.attention import PagedBatch, paged_attention
from dropless.ops.triton.launch import after_previous, early_launch

_PROGRAMS = 264  # wanted at once: two for each multiprocessor of a Hopper GPU
_MAX_SPLITS = 16
_DECODE_KEYS = 64  # of one iteration
_QUERIES, _CHUNK_KEYS = 64, 64  # of one tile


@triton.jit(do_not_specialize=["table_stride"])
def _decode_kernel(
    q_ptr, k_ptr, v_ptr, tables_ptr, seq_lens_ptr, out_ptr, lse_ptr, scale,
    q_stride, table_stride, num_kv_heads,
    GROUP: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """All query heads of one key head, over one part of a sequence's keys: the weighted mean of
    the part's values and the logarithm of its sum of weights."""
    after_previous(EARLY)
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(seq_lens_ptr + sequence)
    part = tl.cdiv(tl.cdiv(length, SPLITS), KEYS) * KEYS
    start, stop = split * part, tl.minimum(length, (split + 1) * part)
    rows, dims = tl.arange(0, ROWS), tl.arange(0, DIM)
    heads = kv_head * GROUP + rows
    wanted = (rows[:, None] < GROUP) & (dims[None, :] < HEAD_DIM)
    q_at = sequence.to(tl.int64) * q_stride + heads[:, None] * HEAD_DIM + dims[None, :]
    q = tl.load(q_ptr + q_at, wanted, 0.0)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mean = tl.zeros([ROWS, DIM], tl.float32)
    for begin in range(start, stop, KEYS):
        places = begin + tl.arange(0, KEYS)
        known = places < stop
        table = tables_ptr + sequence.to(tl.int64) * table_stride
        blocks = tl.load(table + places // BLOCK_SIZE, known, 0).to(tl.int64)
        slots = (blocks * BLOCK_SIZE + places % BLOCK_SIZE) * num_kv_heads + kv_head
        there = known[:, None] & (dims[None, :] < HEAD_DIM)
        k = tl.load(k_ptr + slots[:, None] * HEAD_DIM + dims[None, :], there, 0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        scores = tl.where(known[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - new_top[:, None])
        kept = tl.exp(top - new_top)
        v = tl.load(v_ptr + slots[:, None] * HEAD_DIM + dims[None, :], there, 0.0)
        mean = mean * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        total = total * kept + tl.sum(weights, 1)
        top = new_top
    mean = mean / tl.where(total > 0.0, total, 1.0)[:, None]
    at = (sequence.to(tl.int64) * num_kv_heads * GROUP + heads) * SPLITS + split
    tl.store(out_ptr + at[:, None] * HEAD_DIM + dims[None, :], mean, wanted)
    if SPLITS > 1:
        lse = tl.where(total > 0.0, top + tl.log(total), float("-inf"))
        tl.store(lse_ptr + at, lse, rows < GROUP)


@triton.jit
def _merge_kernel(
    parts_ptr, lse_ptr, out_ptr,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, SPLITS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One head of one sequence a program."""
    after_previous(EARLY)
    head = tl.program_id(0).to(tl.int64)
    splits, dims = tl.arange(0, SPLITS), tl.arange(0, DIM)
    lse = tl.load(lse_ptr + head * SPLITS + splits)
    weights = tl.exp(lse - tl.max(lse, 0))
    at = (head * SPLITS + splits[:, None]) * HEAD_DIM + dims[None, :]
    parts = tl.load(parts_ptr + at, dims[None, :] < HEAD_DIM, 0.0)
    merged = tl.sum(parts * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out_ptr + head * HEAD_DIM + dims, merged, dims < HEAD_DIM)


@triton.jit(do_not_specialize=["table_stride"])
def _chunk_kernel(
    q_ptr, k_ptr, v_ptr, tables_ptr, tiles_ptr, query_start_ptr, seq_lens_ptr, out_ptr, scale,
    q_stride, table_stride, num_heads, num_kv_heads,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """One head of one tile of a sequence's queries."""
    after_previous(EARLY)
    sequence = tl.load(tiles_ptr + 2 * tl.program_id(0))
    tile = tl.load(tiles_ptr + 2 * tl.program_id(0) + 1)
    head = tl.program_id(1)
    kv_head = head // (num_heads // num_kv_heads)
    first_token = tl.load(query_start_ptr + sequence)
    num_queries = tl.load(query_start_ptr + sequence + 1) - first_token
    length = tl.load(seq_lens_ptr + sequence)
    queries, dims = tile * QUERIES + tl.arange(0, QUERIES), tl.arange(0, DIM)
    wanted = (queries[:, None] < num_queries) & (dims[None, :] < HEAD_DIM)
    tokens = (first_token + queries).to(tl.int64)
    q_at = tokens[:, None] * q_stride + head * HEAD_DIM + dims[None, :]
    q = tl.load(q_ptr + q_at, wanted, 0.0)
    own_places = length - num_queries + queries
    stop = tl.minimum(length, length - num_queries + (tile + 1) * QUERIES)
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mean = tl.zeros([QUERIES, DIM], tl.float32)
    for begin in range(0, stop, KEYS):
        places = begin + tl.arange(0, KEYS)
        known = places < stop
        table = tables_ptr + sequence.to(tl.int64) * table_stride
        blocks = tl.load(table + places // BLOCK_SIZE, known, 0).to(tl.int64)
        slots = (blocks * BLOCK_SIZE + places % BLOCK_SIZE) * num_kv_heads + kv_head
        there = known[:, None] & (dims[None, :] < HEAD_DIM)
        k = tl.load(k_ptr + slots[:, None] * HEAD_DIM + dims[None, :], there, 0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        visible = known[None, :] & (places[None, :] <= own_places[:, None])
        scores = tl.where(visible, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - new_top[:, None])
        kept = tl.exp(top - new_top)
        v = tl.load(v_ptr + slots[:, None] * HEAD_DIM + dims[None, :], there, 0.0)
        mean = mean * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        total = total * kept + tl.sum(weights, 1)
        top = new_top
    out_at = (tokens * num_heads + head) * HEAD_DIM
    tl.store(out_ptr + out_at[:, None] + dims[None, :], mean / total[:, None], wanted)


@dataclass(frozen=True, slots=True)
class _Tiles:
    """The tiles of all sequences with several queries."""

    ids: Tensor  # [num_tiles, 2] int32: sequence, and which tile of its queries


@paged_attention.register("cuda")
def paged_attention_cuda(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, scale: float
) -> Tensor:
    out = q.new_empty(q.shape)
    if batch.num_decodes:
        _decode(q, k_cache, v_cache, batch, scale, out)
    if batch.num_decodes < len(batch.seq_lens_host):
        _attend_chunks(q, k_cache, v_cache, batch, scale, out)
    return out


def _decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, scale: float, out: Tensor
) -> None:
    _, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1:3]
    splits = _num_splits(batch.num_decodes * num_kv_heads)
    parts, lse = out, out
    if splits > 1:
        shape = (batch.num_decodes, num_heads, splits)
        parts = torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device)
        lse = torch.empty(shape, dtype=torch.float32, device=q.device)
    dim = triton.next_power_of_2(head_dim)
    group = num_heads // num_kv_heads
    _decode_kernel[(batch.num_decodes, num_kv_heads, splits)](
        q, k_cache, v_cache, batch.block_tables, batch.seq_lens, parts, lse, scale,
        q.stride(0), batch.block_tables.stride(0), num_kv_heads,
        GROUP=group, ROWS=max(16, triton.next_power_of_2(group)), HEAD_DIM=head_dim,
        DIM=max(16, dim), BLOCK_SIZE=block_size, KEYS=_DECODE_KEYS, SPLITS=splits,
        PRECISION=_precision(q), num_warps=4, num_stages=3, **early_launch(q),
    )  # fmt: skip
    if splits > 1:
        _merge_kernel[(batch.num_decodes * num_heads,)](
            parts, lse, out, HEAD_DIM=head_dim, DIM=dim, SPLITS=splits, num_warps=1,
            **early_launch(q),
        )  # fmt: skip


def _attend_chunks(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, scale: float, out: Tensor
) -> None:
    _, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1:3]
    tiles = batch.once(_plan_tiles)
    _chunk_kernel[(len(tiles.ids), num_heads)](
        q, k_cache, v_cache, batch.block_tables, tiles.ids, batch.query_start, batch.seq_lens, out,
        scale, q.stride(0), batch.block_tables.stride(0), num_heads, num_kv_heads,
        HEAD_DIM=head_dim, DIM=max(16, triton.next_power_of_2(head_dim)), BLOCK_SIZE=block_size,
        QUERIES=_QUERIES, KEYS=_CHUNK_KEYS, PRECISION=_precision(q), num_warps=4, num_stages=2,
        **early_launch(q),
    )  # fmt: skip


def _plan_tiles(batch: PagedBatch) -> _Tiles:
    ids = [
        (sequence, tile)
        for sequence in range(batch.num_decodes, len(batch.query_lens_host))
        for tile in range(triton.cdiv(batch.query_lens_host[sequence], _QUERIES))
    ]
    return _Tiles(torch.tensor(ids, dtype=torch.int32).to(batch.seq_lens.device))


def _num_splits(programs: int) -> int:
    """Parts of each sequence's keys, a power of two, so that the whole chip has work."""
    splits = 1
    while splits < _MAX_SPLITS and 2 * splits * programs <= _PROGRAMS:
        splits *= 2
    return splits


def _precision(x: Tensor) -> str:
    """float32 products are exact; the default would round their factors to 10 bits."""
    return "ieee" if x.dtype == torch.float32 else "tf32"
