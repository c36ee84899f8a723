"""Norms and rotation on a CPU, where each PyTorch call of a one-token step costs
more than its arithmetic: native kernels, views made in one call, results written in place."""

from __future__ import annotations

import torch
from torch import Tensor

from dropless.ops.moe import ExpertOutputs, combined
from dropless.ops.norm import layer_norm, rms_norm, stream_of
from dropless.ops.rope import rope_and_cache

_FEW_TOKENS = 8  # up to here calls cost more than arithmetic


@rms_norm.register("cpu")
def rms_norm_cpu(
    x: Tensor | ExpertOutputs, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    summed = stream_of(combined(x), residual)
    if len(summed) > _FEW_TOKENS:
        return torch.rms_norm(summed, weight.shape, weight, eps), summed
    # torch.rms_norm is eight calls here, layer_norm one; and the mean of [x, -x] is zero, so that
    # its deviation is the root of the mean square of x.
    mirrored = torch.cat((summed, -summed), dim=-1)
    normed = torch.layer_norm(mirrored, mirrored.shape[-1:], None, None, eps)
    return normed[:, : len(weight)] * weight, summed


@layer_norm.register("cpu")
def layer_norm_cpu(
    x: Tensor | ExpertOutputs, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    summed = stream_of(combined(x), residual)
    return torch.layer_norm(summed, weight.shape, weight, None, eps), summed


@rope_and_cache.register("cpu")
def rope_and_cache_cpu(
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
    if not qkv.dtype == k_cache.dtype == torch.float32:
        return rope_and_cache.reference(
            qkv,
            rotary,
            k_cache,
            v_cache,
            slot_mapping,
            clip=clip,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
        )
    if clip is not None:
        qkv.clamp_(-clip, clip)
    heads = qkv.view(len(qkv), num_heads + 2 * num_kv_heads, -1)
    q_and_k, v = torch.split(heads, [num_heads + num_kv_heads, num_kv_heads], dim=1)
    cos, sin = rotary.unsqueeze(2).unbind(1)
    turned = q_and_k.roll(heads.shape[-1] // 2, -1).mul_(sin)
    q, k = torch.split(turned.addcmul_(q_and_k, cos), [num_heads, num_kv_heads], dim=1)
    slots = (-1, *k_cache.shape[2:])
    k_cache.view(slots).index_copy_(0, slot_mapping, k)
    v_cache.view(slots).index_copy_(0, slot_mapping, v)
    return q
