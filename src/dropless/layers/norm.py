"""Normalisation with the residual stream carried along, and the sum over ranks before it."""

from __future__ import annotations

from torch import Tensor

from dropless.layers.weights import Weights
from dropless.ops.norm import layer_norm, rms_norm
from dropless.parallel.group import Norm


class _ResidualNorm:
    _norm: Norm

    def __init__(self, weights: Weights, name: str, size: int, eps: float) -> None:
        self._weight = weights.vector(name, size)
        self._eps = eps
        self._group = weights.group
        self._batch_invariant = weights.batch_invariant

    def __call__(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The norm of the residual stream with x in it, and the stream; both [num_tokens, size].

        `x` is this rank's part of what every rank's part is summed to and added to `residual`.
        Without a residual x is whole and begins the stream.
        """
        if self._batch_invariant:
            whole = x if residual is None else self._group.all_reduce_in_order(x)
            return self._norm.invariant(whole, residual, self._weight, self._eps)
        if residual is None:
            return self._norm(x, None, self._weight, self._eps)
        return self._group.all_reduce_norm(self._norm, x, residual, self._weight, self._eps)


class RMSNorm(_ResidualNorm):
    """x / sqrt(mean(x^2) + eps) * weight."""

    _norm = rms_norm


class LayerNorm(_ResidualNorm):
    """(x - mean) / sqrt(variance + eps) * weight, with no bias."""

    _norm = layer_norm
