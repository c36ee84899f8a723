"""Normalisation with the residual stream carried along, and the sum over ranks before it."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dropless.layers.linear import Linear
from dropless.layers.weights import Weights
from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.half_linear import PackedHalf
from dropless.ops.moe import ExpertOutputs, Routed, combined, route
from dropless.ops.norm import layer_norm, rms_norm
from dropless.ops.norm_linear import norm_linear
from dropless.ops.norm_route import norm_route
from dropless.parallel.group import Norm

Part = Tensor | ExpertOutputs


class ResidualNorm:
    """The norm of the residual stream with x in it; alone, or with the linear layer or
    the router behind it.

    `x` [num_tokens, size] is this rank's part of what every rank's part is summed to and added to
    `residual`; what experts made may be left unsummed. Without a residual x is whole and begins the
    stream.
    """

    _norm: ClassVar[Norm]
    _centred: ClassVar[bool]

    def __init__(self, weights: Weights, name: str, size: int, eps: float) -> None:
        self._weight = weights.vector(name, size)
        self._eps = eps
        self._group = weights.group
        self._batch_invariant = weights.batch_invariant
        self._own_norm = self._norm.form(batch_invariant=weights.batch_invariant)
        self._norm_route = norm_route.form(batch_invariant=weights.batch_invariant)
        self._norm_linear = norm_linear.form(batch_invariant=weights.batch_invariant)

    def __call__(self, x: Part, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The norm and the stream, both [num_tokens, size]."""
        if self._sums_with_norm(residual):
            assert residual is not None  # else there is no sum
            return self._group.all_reduce_norm(self._norm, x, residual, self._weight, self._eps)
        return self._own_norm(self._whole(x, residual), residual, self._weight, self._eps)

    def then(self, linear: Linear, x: Part, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """`linear` of the norm [num_tokens, out], and the stream."""
        if isinstance(linear.weight, PackedHalf) or self._sums_with_norm(residual):
            normed, stream = self(x, residual)
            return linear(normed), stream
        return self._norm_linear(
            self._whole(x, residual), residual, self._weight, self._eps, linear.weight, linear.bias,
            centred=self._centred,
        )  # fmt: skip

    def then_route(
        self,
        router: Tensor,
        x: Tensor,
        residual: Tensor,
        top_k: int,
        norm_p: float | None,
        down: Tensor | Fp8Tensor,
        topk_ids: Tensor | None,
    ) -> tuple[Routed, Tensor]:
        """`norm_route` of the sum, and the stream."""
        if self._sums_with_norm(residual):
            normed, stream = self(x, residual)
            return Routed(normed, *route(normed, router, top_k, norm_p, topk_ids)), stream
        whole = combined(self._whole(x, residual))
        return self._norm_route(
            whole, residual, self._weight, self._eps, router, top_k, norm_p, down, topk_ids,
            centred=self._centred,
        )  # fmt: skip

    def _sums_with_norm(self, residual: Tensor | None) -> bool:
        """Whether the sum over ranks is for the kernel that makes the norm, too."""
        if residual is None or self._batch_invariant:
            return False
        return self._group.sums_with_norm(residual)

    def _whole(self, x: Part, residual: Tensor | None) -> Part:
        """The sum of all ranks' x."""
        if residual is None or not self._group.has_peers:
            return x
        part = combined(x)
        if self._batch_invariant:
            return self._group.all_reduce_in_order(part)
        return self._group.all_reduce(part)


class RMSNorm(ResidualNorm):
    """x / sqrt(mean(x^2) + eps) * weight."""

    _norm = rms_norm
    _centred = False


class LayerNorm(ResidualNorm):
    """(x - mean) / sqrt(variance + eps) * weight, with no bias."""

    _norm = layer_norm
    _centred = True
