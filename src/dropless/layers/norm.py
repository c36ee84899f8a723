"""Normalisation with the residual stream carried along."""

from __future__ import annotations

from torch import Tensor

from dropless.layers.weights import Weights
from dropless.ops.norm import layer_norm, rms_norm


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, weights: Weights, name: str, size: int, eps: float) -> None:
        self._weight = weights.vector(name, size)
        self._eps = eps

    def __call__(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Adds x to the residual (None: x begins it); returns the norm of the sum and the sum.
        Both [num_tokens, size]."""
        return rms_norm(x, residual, self._weight, self._eps)


class LayerNorm:
    """(x - mean) / sqrt(variance + eps) * weight, with no bias."""

    def __init__(self, weights: Weights, name: str, size: int, eps: float) -> None:
        self._weight = weights.vector(name, size)
        self._eps = eps

    def __call__(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `RMSNorm.__call__`."""
        return layer_norm(x, residual, self._weight, self._eps)
