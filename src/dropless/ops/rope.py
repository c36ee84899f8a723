"""Rotary position embedding, and the step's keys and values written into the paged cache."""

from __future__ import annotations

from torch import Tensor

from dropless.ops.registry import Op


@Op
def rope_and_cache(
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
    """The rotated queries [T, num_heads, head_dim] in qkv's dtype; keys and values go to the cache.

    Args:
        qkv: [T, (num_heads + 2 * num_kv_heads) * head_dim], clamped to [-clip, clip] first.
            An op may write into it: its content afterwards is not defined.
        rotary: [T, 2, head_dim] float32, of each token's position: the cosines of the head_dim / 2
            angles, twice; and their sines, negated, then as they are. Element i of a head is
            rotated with element i + head_dim / 2.
        k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_dim], contiguous.
        slot_mapping: [T] int64, block * block_size + offset of each token in the cache.
    """
    if clip is not None:
        qkv = qkv.clamp(-clip, clip)
    heads = qkv.view(len(qkv), num_heads + 2 * num_kv_heads, -1)
    q_and_k, v = heads[:, :-num_kv_heads], heads[:, -num_kv_heads:]
    cos, sin = rotary.unsqueeze(2).unbind(1)
    wide = q_and_k.float()
    rotated = (wide * cos + wide.roll(wide.shape[-1] // 2, -1) * sin).to(qkv.dtype)
    slots = (-1, *k_cache.shape[2:])
    k_cache.view(slots)[slot_mapping] = rotated[:, num_heads:].to(k_cache.dtype)
    v_cache.view(slots)[slot_mapping] = v.to(v_cache.dtype)
    return rotated[:, :num_heads]
