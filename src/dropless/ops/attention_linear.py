"""Attention and the linear layer behind it, so that what is between them need not lie in memory."""

from __future__ import annotations

from torch import Tensor

from dropless.ops.attention import PagedBatch, rotary_attention
from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.linear import linear
from dropless.ops.registry import Op


@Op
def attention_linear(
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
    """`linear`, by weight [out, num_heads * head_dim] and bias, of what `rotary_attention` makes of
    the arguments before them: [T, out]."""
    mixed = rotary_attention.reference(
        qkv, rotary, k_cache, v_cache, batch, scale,
        num_heads=num_heads, num_kv_heads=num_kv_heads, clip=clip,
    )  # fmt: skip
    return linear.reference(mixed.flatten(1), weight, bias)


@attention_linear.register("cpu")
def attend_then_multiply(
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
    """By the two ops."""
    mixed = rotary_attention(
        qkv, rotary, k_cache, v_cache, batch, scale,
        num_heads=num_heads, num_kv_heads=num_kv_heads, clip=clip,
    )  # fmt: skip
    return linear(mixed.flatten(1), weight, bias)


@attention_linear.register_invariant("cpu")
@attention_linear.register_invariant("cuda")
def attend_then_multiply_invariant(
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
    mixed = rotary_attention.invariant(
        qkv, rotary, k_cache, v_cache, batch, scale,
        num_heads=num_heads, num_kv_heads=num_kv_heads, clip=clip,
    )  # fmt: skip
    return linear.invariant(mixed.flatten(1), weight, bias)
