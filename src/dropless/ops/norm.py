"""Normalisation of hidden states, with the residual stream's addition that stands before it."""

from __future__ import annotations

import torch
from torch import Tensor

from dropless.ops.registry import Op


@Op
def rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`(normed, new_residual)`, both [T, hidden] in x's dtype.

    `new_residual` is x + residual (x itself where residual is None); `normed` is new_residual over
    its root mean square, times weight [hidden]. Statistics are in float32.
    """
    summed = x if residual is None else x + residual
    wide = summed.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight, summed


@Op
def layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """As `rms_norm`, with the mean subtracted first and no bias: (v - mean) / sqrt(var + eps)."""
    summed = x if residual is None else x + residual
    wide = summed.float()
    centred = wide - wide.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (centred * scale * weight.float()).to(x.dtype), summed
