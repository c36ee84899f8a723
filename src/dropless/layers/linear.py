"""Linear layers: split by output columns or by input rows over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dropless.layers.weights import Weights
from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.half_linear import PackedHalf, half_linear
from dropless.ops.linear import linear


class Linear:
    """x @ weight.T + bias on this rank's part."""

    def __init__(
        self,
        weight: Tensor | Fp8Tensor | PackedHalf,
        bias: Tensor | None = None,
        *,
        batch_invariant: bool,
    ) -> None:
        """weight: [out, in]; bias: [out]."""
        self.weight = weight
        self.bias = bias
        self._linear = linear.form(batch_invariant=batch_invariant)
        self._half_linear = half_linear.form(batch_invariant=batch_invariant)

    def __call__(self, x: Tensor) -> Tensor:
        """[num_tokens, in] to [num_tokens, out]."""
        if isinstance(self.weight, PackedHalf):
            y = self._half_linear(x, self.weight)
            return y if self.bias is None else y.add_(self.bias)
        return self._linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a stored matrix that are one output of a merged layer: all, or a range of them."""

    name: str
    size: int
    start: int = 0
    stored: int | None = None  # rows of the whole matrix; None: `size`

    @property
    def bias(self) -> str:
        return self.name.removesuffix("weight") + "bias"

    def fill(
        self,
        weights: Weights,
        place: Tensor | Fp8Tensor,
        columns: int,
        cut: tuple[int, int],
        *,
        stored_transposed: bool = False,
    ) -> None:
        """Read some of these rows, from cut[0] on cut[1] of them, into a part of a `room`."""
        weights.fill(
            place,
            self.name,
            (self.stored or self.size, columns),
            dim=0,
            start=self.start + cut[0],
            length=cut[1],
            stored_transposed=stored_transposed,
        )


def column_parallel(
    weights: Weights, in_features: int, outputs: Sequence[Rows], *, bias: bool = False
) -> Linear:
    """Several outputs of one input as one matrix; each rank has its even part of every output."""
    cuts = [weights.group.slice_of(rows.size, rows.name) for rows in outputs]
    weight = weights.room((sum(size for _, size in cuts), in_features), weights.matrix_dtype)
    begin = 0
    for rows, cut in zip(outputs, cuts, strict=True):
        rows.fill(weights, weight[begin : begin + cut[1]], in_features, cut)
        begin += cut[1]
    return Linear(
        weights.pack(weight),
        _merged_bias(weights, outputs) if bias else None,
        batch_invariant=weights.batch_invariant,
    )


def _merged_bias(weights: Weights, outputs: Sequence[Rows]) -> Tensor:
    dtype = weights.dtype
    cuts = [weights.group.slice_of(rows.size, rows.bias) for rows in outputs]
    merged = torch.empty(sum(size for _, size in cuts), dtype=dtype, device=weights.device)
    begin = 0
    for rows, (start, size) in zip(outputs, cuts, strict=True):
        place = merged[begin : begin + size]
        weights.fill(place, rows.bias, (rows.size,), dim=0, start=start, length=size)
        begin += size
    return merged


class RowParallelLinear:
    """Each rank multiplies its part of the input. The output is the sum over ranks, which the norm
    that follows makes."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
    ) -> None:
        start, size = weights.group.slice_of(in_features, name)
        weight = weights.room((out_features, size), weights.matrix_dtype)
        weights.fill(weight, name, (out_features, in_features), dim=1, start=start, length=size)
        bias_name = name.removesuffix("weight") + "bias"
        whole_bias = weights.vector(bias_name, out_features) if bias else None
        self.linear = Linear(
            weights.pack(weight),
            whole_bias if weights.group.rank == 0 else None,
            batch_invariant=weights.batch_invariant,
        )

    def __call__(self, x: Tensor) -> Tensor:
        """[num_tokens, in / ranks] to this rank's part of the sum [num_tokens, out]."""
        return self.linear(x)
