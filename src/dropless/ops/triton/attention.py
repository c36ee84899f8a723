"""Paged attention: single queries split over their keys, chunks of queries in tiles.

Where a sequence is cut is found on the device: the same grid serves all batches of a size, so that
a graph can be captured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.attention import (
    PagedBatch,
    paged_attention,
    rotary_attention,
    rotate_then_attend,
)
from dropless.ops.attention_linear import attend_then_multiply, attention_linear
from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.triton.fp8 import Tokens, scale_of, to_fp8
from dropless.ops.triton.launch import (
    after_previous,
    arrives_last,
    counters,
    early_launch,
)
from dropless.ops.triton.linear import linear_of

_PROGRAMS = 2 * 132  # at most, if sequences are split: two for a multiprocessor of a Hopper GPU
_MAX_SPLITS = 32
_MIXED_SPLITS = 8  # beside chunks, where few of the sequences that may have one query do
_DECODE_KEYS = 64  # of one tile
_FEW_SPLITS = 8  # beyond, a part seldom has more than one tile
_MERGED = tl.constexpr(8)  # parts at a time
_QUERIES, _CHUNK_KEYS = 64, 64  # of one tile


@triton.jit
def _slots(
    table_ptr, begin, stop, kv_head, num_kv_heads, KEYS: tl.constexpr, BLOCK_SIZE: tl.constexpr
):
    """[KEYS]: the rows of the cache with a sequence's keys from `begin` on, before `stop`."""
    places = begin + tl.arange(0, KEYS)
    blocks = tl.load(table_ptr + places // BLOCK_SIZE, places < stop, 0).to(tl.int64)
    return (blocks * BLOCK_SIZE + places % BLOCK_SIZE) * num_kv_heads + kv_head


@triton.jit
def _tile(
    cache_ptr, slots, begin, stop, KEYS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr
):
    """[KEYS, DIM]: keys, or values, from `begin` on; zero from `stop` on."""
    dims = tl.arange(0, DIM)
    there = (begin + tl.arange(0, KEYS) < stop)[:, None] & (dims[None, :] < HEAD_DIM)
    return tl.load(cache_ptr + slots[:, None] * HEAD_DIM + dims[None, :], there, 0.0)


@triton.jit
def _see(
    q, k, v, own_places, begin, stop, scale, mean, top, total,
    KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Queries q [ROWS, DIM] have seen one tile of keys and values [KEYS, DIM] more: the weighted
    sum of the values, the greatest score, and the sum of the weights. They see keys before `stop`
    that lie no later than own_places [ROWS]."""
    places = begin + tl.arange(0, KEYS)
    visible = (places < stop)[None, :] & (places[None, :] <= own_places[:, None])
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    scores = tl.where(visible, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp(scores - new_top[:, None])
    kept = tl.exp(top - new_top)
    mean = mean * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    return mean, new_top, total * kept + tl.sum(weights, 1)


@triton.jit
def _nothing(ROWS: tl.constexpr, DIM: tl.constexpr):
    """What `_see` begins with, when no key was seen."""
    top = tl.full([ROWS], float("-inf"), tl.float32)
    return tl.zeros([ROWS, DIM], tl.float32), top, tl.zeros([ROWS], tl.float32)


@triton.jit
def _rotated(
    rows_ptr, rotary_ptr, dims, wanted, clip, HEAD_DIM: tl.constexpr, HAS_CLIP: tl.constexpr
):
    """Heads of one token at rows_ptr, clipped and rotated, as `rope_and_cache` says."""
    half: tl.constexpr = HEAD_DIM // 2
    row = _clipped(rows_ptr + dims, wanted, clip, HAS_CLIP).to(tl.float32)
    other_half = tl.where(dims < half, dims + half, dims - half)
    other = _clipped(rows_ptr + other_half, wanted, clip, HAS_CLIP).to(tl.float32)
    inside = dims < HEAD_DIM
    cos = tl.load(rotary_ptr + dims, inside, 0.0)
    sin = tl.load(rotary_ptr + HEAD_DIM + dims, inside, 0.0)
    return (row * cos + other * sin).to(rows_ptr.dtype.element_ty)


@triton.jit
def _clipped(at, wanted, clip, HAS_CLIP: tl.constexpr):
    x = tl.load(at, wanted, 0.0)
    if HAS_CLIP:
        x = tl.minimum(tl.maximum(x.to(tl.float32), -clip), clip).to(x.dtype)
    return x


@triton.jit
def _quantize_row(
    rows_ptr, values_ptr, scales_ptr, counter_ptr, token, size, count,
    ROW: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """A token's row, by the last of `count` programs that have written a part of it."""
    if SHARED:
        is_last = arrives_last(counter_ptr, count)
    else:
        tl.debug_barrier()  # all threads have stored before others read
        is_last = count == 1
    if is_last:
        columns = tl.arange(0, ROW)
        inside = columns < size
        row = tl.load(rows_ptr + token * size + columns, inside, 0.0, cache_modifier=".cg")
        scale = scale_of(row, 0)
        tl.store(values_ptr + token * size + columns, to_fp8(row, scale), inside)
        tl.store(scales_ptr + token, scale)


@triton.jit(do_not_specialize=["table_stride"])
def _decode_kernel(
    q_ptr, rotary_ptr, slots_ptr, clip, k_ptr, v_ptr, tables_ptr, starts_ptr, lens_ptr,
    parts_ptr, lse_ptr, counters_ptr, out_ptr, values_ptr, scales_ptr,
    scale, q_stride, table_stride, num_kv_heads,
    GROUP: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr,
    ROTATES: tl.constexpr, HAS_CLIP: tl.constexpr, QUANTIZED: tl.constexpr, ROW: tl.constexpr,
    SHARED: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """All query heads of one key head, over one part of a sequence's keys: the weighted mean of
    the part's values and the logarithm of its sum of weights. The last of the parts to end merges
    all, in the order of keys. If it ROTATES, q are rows of qkv, and the part with the sequence's
    last key, which is the query's own, writes that into the cache and does not read it there; all
    others no kernel of the step writes, and the first of them are on their way before the kernel
    ahead has ended. Who ends a token's row, if it is to be QUANTIZED, does that; the row is SHARED
    by several key heads' programs."""
    if not ROTATES:
        after_previous(EARLY)
    sequence, kv_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    length = tl.load(lens_ptr + sequence)
    token = tl.load(starts_ptr + sequence).to(tl.int64)
    part = tl.cdiv(tl.cdiv(length, SPLITS), KEYS) * KEYS
    start, stop = split * part, tl.minimum(length, (split + 1) * part)
    has_own = ROTATES and stop == length
    if has_own:
        stop -= 1
    table_ptr = tables_ptr + sequence * table_stride
    slots = _slots(table_ptr, start, stop, kv_head, num_kv_heads, KEYS, BLOCK_SIZE)
    k = _tile(k_ptr, slots, start, stop, KEYS, HEAD_DIM, DIM)
    v = _tile(v_ptr, slots, start, stop, KEYS, HEAD_DIM, DIM)
    if ROTATES:
        after_previous(EARLY)
    if start >= length:
        return
    rows, dims = tl.arange(0, ROWS), tl.arange(0, DIM)
    heads = kv_head * GROUP + rows
    wanted = (rows[:, None] < GROUP) & (dims[None, :] < HEAD_DIM)
    q_at = q_ptr + token * q_stride + heads[:, None] * HEAD_DIM
    mean, top, total = _nothing(ROWS, DIM)
    if ROTATES:
        rotary_at = rotary_ptr + token * 2 * HEAD_DIM
        q = _rotated(q_at, rotary_at, dims[None, :], wanted, clip, HEAD_DIM, HAS_CLIP)
        if has_own:
            inside = dims < HEAD_DIM
            k_at = q_ptr + token * q_stride + (num_kv_heads * GROUP + kv_head) * HEAD_DIM
            own_k = _rotated(k_at, rotary_at, dims, inside, clip, HEAD_DIM, HAS_CLIP)
            own_v = _clipped(k_at + num_kv_heads * HEAD_DIM + dims, inside, clip, HAS_CLIP)
            own_k, own_v = own_k.to(k_ptr.dtype.element_ty), own_v.to(v_ptr.dtype.element_ty)
            slot = (tl.load(slots_ptr + token) * num_kv_heads + kv_head) * HEAD_DIM
            tl.store(k_ptr + slot + dims, own_k, inside)
            tl.store(v_ptr + slot + dims, own_v, inside)
            top = tl.sum(q.to(tl.float32) * own_k.to(tl.float32)[None, :], 1) * scale
            total += 1.0
            mean += own_v.to(tl.float32)[None, :]
    else:
        q = tl.load(q_at + dims[None, :], wanted, 0.0)
    own_places = tl.full([ROWS], length, tl.int32)
    mean, top, total = _see(
        q, k, v, own_places, start, stop, scale, mean, top, total, KEYS, PRECISION
    )  # fmt: skip
    slots = _slots(table_ptr, start + KEYS, stop, kv_head, num_kv_heads, KEYS, BLOCK_SIZE)
    for begin in range(start + KEYS, stop, KEYS):
        k = _tile(k_ptr, slots, begin, stop, KEYS, HEAD_DIM, DIM)
        v = _tile(v_ptr, slots, begin, stop, KEYS, HEAD_DIM, DIM)
        slots = _slots(
            table_ptr, begin + KEYS, stop, kv_head, num_kv_heads, KEYS, BLOCK_SIZE
        )  # fmt: skip
        mean, top, total = _see(
            q, k, v, own_places, begin, stop, scale, mean, top, total, KEYS, PRECISION
        )  # fmt: skip
    mean /= tl.where(total > 0.0, total, 1.0)[:, None]
    num_heads = num_kv_heads * GROUP
    out_at = out_ptr + (token * num_heads + heads[:, None]) * HEAD_DIM + dims[None, :]
    num_parts = tl.cdiv(length, part)
    row_counter = counters_ptr + tl.num_programs(0) * num_kv_heads + sequence
    if SPLITS == 1 or num_parts == 1:
        tl.store(out_at, mean, wanted)
        if QUANTIZED:
            _quantize_row(
                out_ptr, values_ptr, scales_ptr, row_counter, token, num_heads * HEAD_DIM,
                num_kv_heads, ROW, SHARED,
            )  # fmt: skip
        return
    at = (sequence * num_heads + heads) * SPLITS
    parts_at = parts_ptr + at[:, None] * HEAD_DIM + dims[None, :]
    tl.store(parts_at + split * HEAD_DIM, mean, wanted)
    tl.store(lse_ptr + at + split, top + tl.log(total), rows < GROUP)
    if not arrives_last(counters_ptr + sequence * num_kv_heads + kv_head, num_parts):
        return
    splits = tl.arange(0, SPLITS)
    is_part = (rows[:, None] < GROUP) & (splits[None, :] < num_parts)
    lse_at = lse_ptr + at[:, None] + splits[None, :]
    top = tl.max(tl.load(lse_at, is_part, float("-inf"), cache_modifier=".cg"), 1)
    merged = tl.zeros([ROWS, DIM], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for first in range(0, num_parts, _MERGED):
        for more in tl.static_range(_MERGED):  # unrolled, so that loads do not wait for each other
            other = first + more
            known = (rows < GROUP) & (other < num_parts)
            lse = tl.load(lse_ptr + at + other, known, float("-inf"), cache_modifier=".cg")
            weight = tl.exp(lse - top)
            there = wanted & (other < num_parts)
            mean = tl.load(parts_at + other * HEAD_DIM, there, 0.0, cache_modifier=".cg")
            merged += mean * weight[:, None]
            total += weight
    tl.store(out_at, merged / total[:, None], wanted)
    if QUANTIZED:
        _quantize_row(
            out_ptr, values_ptr, scales_ptr, row_counter, token, num_heads * HEAD_DIM,
            num_kv_heads, ROW, SHARED,
        )  # fmt: skip


@triton.jit(do_not_specialize=["table_stride"])
def _chunk_kernel(
    q_ptr, k_ptr, v_ptr, tables_ptr, tiles_ptr, query_start_ptr, seq_lens_ptr, out_ptr, scale,
    q_stride, table_stride, num_heads, num_kv_heads,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One head of one tile of a sequence's queries."""
    after_previous(EARLY)
    sequence = tl.load(tiles_ptr + 2 * tl.program_id(0)).to(tl.int64)
    tile = tl.load(tiles_ptr + 2 * tl.program_id(0) + 1)
    if sequence < 0:
        return
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
    stop = tl.minimum(length, length - num_queries + (tile + 1) * QUERIES)
    mean, top, total = _nothing(QUERIES, DIM)
    table_ptr = tables_ptr + sequence * table_stride
    for begin in range(0, stop, KEYS):
        slots = _slots(table_ptr, begin, stop, kv_head, num_kv_heads, KEYS, BLOCK_SIZE)
        k = _tile(k_ptr, slots, begin, stop, KEYS, HEAD_DIM, DIM)
        v = _tile(v_ptr, slots, begin, stop, KEYS, HEAD_DIM, DIM)
        mean, top, total = _see(
            q, k, v, length - num_queries + queries, begin, stop, scale, mean, top, total,
            KEYS, PRECISION,
        )  # fmt: skip
    mean /= tl.where(total > 0.0, total, 1.0)[:, None]
    out_at = (tokens * num_heads + head) * HEAD_DIM
    tl.store(out_ptr + out_at[:, None] + dims[None, :], mean, wanted)


@triton.jit(do_not_specialize=["num_sequences", "num_decodes"])
def _plan_kernel(
    query_start_ptr, seq_lens_ptr, decode_lens_ptr, tiles_ptr, num_sequences, num_decodes,
    SEQUENCES: tl.constexpr, QUERIES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One tile a program; the first one finds the lengths of decodes as well."""
    after_previous(EARLY)
    tile = tl.program_id(0)
    sequences = tl.arange(0, SEQUENCES)
    there = sequences < num_sequences
    starts = tl.load(query_start_ptr + sequences, there, 0)
    num_queries = tl.load(query_start_ptr + sequences + 1, there, 0) - starts
    is_decode = (num_queries == 1) & (sequences < num_decodes)
    if tile == 0:
        lengths = tl.load(seq_lens_ptr + sequences, there, 0)
        tl.store(decode_lens_ptr + sequences, tl.where(is_decode, lengths, 0), there)
    num_tiles = tl.where(is_decode, 0, tl.cdiv(num_queries, QUERIES))
    stops = tl.cumsum(num_tiles, 0)
    sequence = tl.sum((stops <= tile).to(tl.int32), 0)
    before = tl.sum(tl.where(sequences < sequence, num_tiles, 0), 0)
    is_used = tile < tl.sum(num_tiles, 0)
    tl.store(tiles_ptr + 2 * tile, tl.where(is_used, sequence, -1))
    tl.store(tiles_ptr + 2 * tile + 1, tile - before)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The same for all layers of a step."""

    decode_lens: Tensor  # [num_seqs] int32: keys of a sequence with one query; 0: it has several
    tiles: Tensor  # [tiles, 2] int32: sequence (-1: none), and which tile of its queries


def _make_plan(batch: PagedBatch, num_tokens: int, num_decodes: int, num_chunks: int) -> _Plan:
    """The first `num_decodes` sequences, as far as they have one query, get no tiles."""
    num_sequences = len(batch.seq_lens)
    num_tiles = min(triton.cdiv(num_tokens, _QUERIES) + num_chunks, num_tokens)
    decode_lens = torch.empty_like(batch.seq_lens)
    tiles = torch.empty(num_tiles, 2, dtype=torch.int32, device=batch.seq_lens.device)
    _plan_kernel[(num_tiles,)](
        batch.query_start, batch.seq_lens, decode_lens, tiles, num_sequences, num_decodes,
        SEQUENCES=triton.next_power_of_2(num_sequences), QUERIES=_QUERIES,
        **early_launch(batch.seq_lens),
    )  # fmt: skip
    return _Plan(decode_lens, tiles)


@paged_attention.register("cuda")
def paged_attention_cuda(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, scale: float
) -> Tensor:
    out = q.new_empty(q.shape)
    plan = batch.once(_make_plan, len(q), batch.num_decodes, batch.num_chunks)
    if batch.num_decodes:
        _decode(q, None, k_cache, v_cache, batch, plan.decode_lens, scale, out)
    if batch.num_chunks:
        _attend_chunks(q, k_cache, v_cache, batch, plan, scale, out)
    return out


@paged_attention.register_invariant("cuda")
def paged_attention_invariant(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, scale: float
) -> Tensor:
    """A single query as a chunk of one: every query walks the keys from the first one on in tiles
    of one size, and a tile of which it sees nothing changes none of its bits."""
    out = q.new_empty(q.shape)
    plan = batch.once(_make_plan, len(q), 0, len(batch.seq_lens))
    _attend_chunks(q, k_cache, v_cache, batch, plan, scale, out)
    return out


@dataclass(frozen=True, slots=True)
class _Rotation:
    """Of queries and keys in one kernel with attention."""

    rotary: Tensor  # [T, 2, head_dim] float32
    clip: float | None


@rotary_attention.register("cuda")
def rotary_attention_cuda(
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
    """Chunks, whose keys more than one program reads, get them from the cache."""
    if batch.num_chunks:
        return rotate_then_attend(
            qkv, rotary, k_cache, v_cache, batch, scale,
            num_heads=num_heads, num_kv_heads=num_kv_heads, clip=clip,
        )  # fmt: skip
    out = qkv.new_empty(len(qkv), num_heads, k_cache.shape[-1])
    rotation = _Rotation(rotary, clip)
    _decode(qkv.contiguous(), rotation, k_cache, v_cache, batch, batch.seq_lens, scale, out)
    return out


@attention_linear.register("cuda")
def attention_linear_cuda(
    qkv: Tensor,
    rotary: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: PagedBatch,
    scale: float,
    weight: Tensor | Fp8Tensor,
    bias: Tensor | None,
    *,
    num_heads: int,
    num_kv_heads: int,
    clip: float | None,
) -> Tensor:
    """Single queries are quantised where they attend; one alone by its product."""
    num_tokens = len(qkv)
    if batch.num_chunks or isinstance(weight, Tensor) or num_tokens == 1:
        return attend_then_multiply(
            qkv, rotary, k_cache, v_cache, batch, scale, weight, bias,
            num_heads=num_heads, num_kv_heads=num_kv_heads, clip=clip,
        )  # fmt: skip
    out = qkv.new_empty(num_tokens, num_heads, k_cache.shape[-1])
    quantized = Fp8Tensor.empty((num_tokens, num_heads * k_cache.shape[-1]), qkv.device)
    _decode(
        qkv.contiguous(), _Rotation(rotary, clip), k_cache, v_cache, batch, batch.seq_lens, scale,
        out, quantized,
    )  # fmt: skip
    return linear_of(Tokens.known(quantized, qkv.dtype), weight, bias)


def _decode(
    q: Tensor,
    rotation: _Rotation | None,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: PagedBatch,
    lens: Tensor,
    scale: float,
    out: Tensor,
    quantized: Fp8Tensor | None = None,
) -> None:
    _, num_heads, head_dim = out.shape
    block_size, num_kv_heads = k_cache.shape[1:3]
    most_keys = batch.block_tables.shape[1] * block_size
    least = _MIXED_SPLITS if batch.num_chunks else 1
    heads = batch.num_decodes * num_kv_heads
    wanted = max(least, _PROGRAMS // heads)
    possible = int(triton.next_power_of_2(triton.cdiv(most_keys, _DECODE_KEYS)))
    splits = min(_MAX_SPLITS, possible, 1 << (wanted.bit_length() - 1))
    is_cut, is_cut_small = splits > 1, splits > _FEW_SPLITS
    keys = 2 * _DECODE_KEYS if is_cut and not is_cut_small else _DECODE_KEYS
    shape = (batch.num_decodes, num_heads, splits)
    parts = torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device)
    lse = torch.empty(shape, dtype=torch.float32, device=q.device)
    dim, group = int(triton.next_power_of_2(head_dim)), num_heads // num_kv_heads
    counts = counters(q.device, batch.num_decodes * (num_kv_heads + 1))
    values, scales = (out, out) if quantized is None else (quantized.values, quantized.scales)
    _decode_kernel[(batch.num_decodes, num_kv_heads, splits)](
        q, q if rotation is None else rotation.rotary, batch.slot_mapping,
        0.0 if rotation is None or rotation.clip is None else rotation.clip,
        k_cache, v_cache, batch.block_tables, batch.query_start, lens,
        parts, lse, counts, out, values, scales,
        scale, q.stride(0), batch.block_tables.stride(0), num_kv_heads,
        GROUP=group, ROWS=max(16, triton.next_power_of_2(group)), HEAD_DIM=head_dim,
        DIM=max(16, dim), BLOCK_SIZE=block_size, KEYS=keys, SPLITS=splits,
        ROTATES=rotation is not None,
        HAS_CLIP=rotation is not None and rotation.clip is not None,
        QUANTIZED=quantized is not None, ROW=triton.next_power_of_2(num_heads * head_dim),
        SHARED=num_kv_heads > 1, PRECISION=_precision(q), num_warps=8,
        num_stages=1 if is_cut_small else 2 if is_cut else 3,
        **early_launch(q),
    )  # fmt: skip


def _attend_chunks(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: PagedBatch,
    plan: _Plan,
    scale: float,
    out: Tensor,
) -> None:
    _, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1:3]
    _chunk_kernel[(len(plan.tiles), num_heads)](
        q, k_cache, v_cache, batch.block_tables, plan.tiles, batch.query_start, batch.seq_lens,
        out, scale, q.stride(0), batch.block_tables.stride(0), num_heads, num_kv_heads,
        HEAD_DIM=head_dim, DIM=max(16, int(triton.next_power_of_2(head_dim))),
        BLOCK_SIZE=block_size, QUERIES=_QUERIES, KEYS=_CHUNK_KEYS, PRECISION=_precision(q),
        num_warps=4, num_stages=2, **early_launch(q),
    )  # fmt: skip


def _precision(x: Tensor) -> str:
    """float32 products are exact; the default would round their factors to 10 bits."""
    return "ieee" if x.dtype == torch.float32 else "tf32"
