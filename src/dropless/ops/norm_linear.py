"""A norm and the linear layer behind it, so that what is between them need not lie in memory."""

from __future__ import annotations

from torch import Tensor

from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.linear import linear
from dropless.ops.moe import ExpertOutputs
from dropless.ops.norm import layer_norm, rms_norm
from dropless.ops.registry import Op


@Op
def norm_linear(
    x: Tensor | ExpertOutputs,
    residual: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor | Fp8Tensor,
    bias: Tensor | None,
    *,
    centred: bool,
) -> tuple[Tensor, Tensor]:
    """`(y [T, out], new_residual [T, hidden])`: `linear`, by weight [out, hidden] and bias, of what
    `layer_norm` (`centred`) or `rms_norm` make of x and residual."""
    norm = layer_norm if centred else rms_norm
    normed, stream = norm.reference(x, residual, norm_weight, eps)
    return linear.reference(normed, weight, bias), stream


@norm_linear.register("cpu")
def norm_then_linear(
    x: Tensor | ExpertOutputs,
    residual: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor | Fp8Tensor,
    bias: Tensor | None,
    *,
    centred: bool,
) -> tuple[Tensor, Tensor]:
    """By the two ops."""
    norm = layer_norm if centred else rms_norm
    normed, stream = norm(x, residual, norm_weight, eps)
    return linear(normed, weight, bias), stream


@norm_linear.register_invariant("cpu")
@norm_linear.register_invariant("cuda")
def norm_then_linear_invariant(
    x: Tensor | ExpertOutputs,
    residual: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor | Fp8Tensor,
    bias: Tensor | None,
    *,
    centred: bool,
) -> tuple[Tensor, Tensor]:
    norm = layer_norm if centred else rms_norm
    normed, stream = norm.invariant(x, residual, norm_weight, eps)
    return linear.invariant(normed, weight, bias), stream
