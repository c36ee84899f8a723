"""Normalisation of hidden states, with the residual stream's addition that stands before it."""

from __future__ import annotations

import torch
from torch import Tensor

from dropless.ops.moe import ExpertOutputs, combine
from dropless.ops.registry import Op


def stream_of(x: Tensor, residual: Tensor | None) -> Tensor:
    """The residual stream with x in it."""
    return x if residual is None else x + residual


@Op
def rms_norm(
    x: Tensor | ExpertOutputs, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`(normed, new_residual)`, both [T, hidden] in x's dtype.

    x [T, hidden] may be what experts made, whose sum is then made first (`combine`).
    `new_residual` is x + residual (x itself where residual is None); `normed` is new_residual over
    its root mean square, times weight [hidden]. Statistics are in float32.
    """
    summed = stream_of(x if isinstance(x, Tensor) else combine.reference(x), residual)
    wide = summed.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale).to(summed.dtype) * weight, summed


@Op
def layer_norm(
    x: Tensor | ExpertOutputs, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """As `rms_norm`, with the mean subtracted first and no bias: (v - mean) / sqrt(var + eps)."""
    summed = stream_of(x if isinstance(x, Tensor) else combine.reference(x), residual)
    wide = summed.float()
    centred = wide - wide.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (centred * scale * weight.float()).to(summed.dtype), summed
