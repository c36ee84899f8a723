"""Rotation with the cache write, and the gated activation: one pass over memory each. A program
has tokens of its own and does with each what it would do with it alone."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.activation import silu_mul
from dropless.ops.rope import rope_and_cache
from dropless.ops.triton.launch import after_previous, early_launch

_COLUMNS = 1024  # of the activation, for one program
_FEW_HEADS, _MANY_HEADS = 8, 32  # that one program rotates
_FEW_PROGRAMS = 1024  # of few heads: beyond, it is their number that takes time


@triton.jit(do_not_specialize=["num_tokens"])
def _rope_kernel(
    qkv_ptr, rotary_ptr, k_ptr, v_ptr, slots_ptr, q_ptr, clip, num_tokens, num_heads, num_kv_heads,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr, HAS_CLIP: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """ROWS heads a program, of one token or several: a token's query heads, then its key heads,
    then its value heads."""
    after_previous(EARLY)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    all_heads = num_heads + 2 * num_kv_heads
    tokens = (rows // all_heads).to(tl.int64)
    heads = (rows % all_heads)[:, None]
    columns = tl.arange(0, HALF)[None, :]
    exists = tokens < num_tokens
    inside = exists[:, None] & (columns < HEAD_DIM // 2)
    source = qkv_ptr + rows.to(tl.int64)[:, None] * HEAD_DIM + columns
    first = tl.load(source, inside, 0.0)
    second = tl.load(source + HEAD_DIM // 2, inside, 0.0)
    if HAS_CLIP:
        first = tl.minimum(tl.maximum(first.to(tl.float32), -clip), clip).to(first.dtype)
        second = tl.minimum(tl.maximum(second.to(tl.float32), -clip), clip).to(second.dtype)
    angles = rotary_ptr + tokens[:, None] * 2 * HEAD_DIM + columns
    turns = heads < num_heads + num_kv_heads
    cos = tl.load(angles, inside & turns, 1.0)
    sin = tl.load(angles + HEAD_DIM + HEAD_DIM // 2, inside & turns, 0.0)
    a, b = first.to(tl.float32), second.to(tl.float32)
    # said which product is added unrounded: compilers choose by the number of ROWS
    first = tl.fma(a, cos, -(b * sin)).to(first.dtype)
    second = tl.fma(b, cos, a * sin).to(second.dtype)
    slots = tl.load(slots_ptr + tokens, exists, 0)[:, None] * num_kv_heads
    is_q = inside & (heads < num_heads)
    is_k = inside & (heads >= num_heads) & turns
    is_v = inside & (heads >= num_heads + num_kv_heads)
    q_at = q_ptr + (tokens[:, None] * num_heads + heads) * HEAD_DIM + columns
    k_at = k_ptr + (slots + heads - num_heads) * HEAD_DIM + columns
    v_at = v_ptr + (slots + heads - num_heads - num_kv_heads) * HEAD_DIM + columns
    tl.store(q_at, first, is_q)
    tl.store(q_at + HEAD_DIM // 2, second, is_q)
    tl.store(k_at, first, is_k)
    tl.store(k_at + HEAD_DIM // 2, second, is_k)
    tl.store(v_at, first, is_v)
    tl.store(v_at + HEAD_DIM // 2, second, is_v)


@rope_and_cache.register("cuda")
@rope_and_cache.register_invariant("cuda")
def rope_and_cache_cuda(
    qkv: Tensor,
    rotary: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    clip: float | None,
) -> Tensor:
    num_tokens, head_dim = len(qkv), k_cache.shape[-1]
    q = qkv.new_empty(num_tokens, num_heads, head_dim)
    num_rows = num_tokens * (num_heads + 2 * num_kv_heads)
    rows = _FEW_HEADS if num_rows <= _FEW_HEADS * _FEW_PROGRAMS else _MANY_HEADS
    _rope_kernel[(triton.cdiv(num_rows, rows),)](
        qkv.contiguous(), rotary, k_cache, v_cache, slot_mapping, q, clip or 0.0,
        num_tokens, num_heads, num_kv_heads, ROWS=rows, HEAD_DIM=head_dim,
        HALF=triton.next_power_of_2(head_dim // 2), HAS_CLIP=clip is not None,
        num_warps=4, **early_launch(qkv),
    )  # fmt: skip
    return q


@triton.jit
def _silu_mul_kernel(gate_up_ptr, out_ptr, width, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    after_previous(EARLY)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_up_ptr + token * 2 * width + columns, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + token * 2 * width + width + columns, inside, 0.0).to(tl.float32)
    tl.store(out_ptr + token * width + columns, gate * tl.sigmoid(gate) * up, inside)


@silu_mul.register("cuda")
@silu_mul.register_invariant("cuda")
def silu_mul_cuda(gate_up: Tensor) -> Tensor:
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(num_tokens, width)
    _silu_mul_kernel[(num_tokens, triton.cdiv(width, _COLUMNS))](
        gate_up.contiguous(), out, width, BLOCK=_COLUMNS, num_warps=4, **early_launch(gate_up)
    )
    return out
