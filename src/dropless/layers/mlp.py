"""The dense feed-forward layer, SiLU-gated, and the norm before it."""

from __future__ import annotations

from torch import Tensor

from dropless.layers.linear import RowParallelLinear, Rows, column_parallel
from dropless.layers.norm import ResidualNorm
from dropless.layers.weights import Weights
from dropless.ops.activation import silu_mul


class GatedMLP:
    """down(silu(gate(x)) * up(x)), with gate and up as one matrix."""

    def __init__(
        self,
        weights: Weights,
        norm: ResidualNorm,
        hidden_size: int,
        width: int,
        *,
        gate: str,
        up: str,
        down: str,
        bias: bool = False,
    ) -> None:
        """`gate`, `up` [width, hidden] and `down` [hidden, width] are the weights' names."""
        self._norm = norm
        outputs = [Rows(gate, width), Rows(up, width)]
        self._gate_up = column_parallel(weights, hidden_size, outputs, bias=bias)
        self._silu_mul = silu_mul.form(batch_invariant=weights.batch_invariant)
        self._down = RowParallelLinear(weights, down, width, hidden_size, bias=bias)

    def __call__(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's part of what is to be added to the stream, and the stream with x in it, both
        [num_tokens, hidden]; x and residual as of `ResidualNorm`."""
        gate_up, stream = self._norm.then(self._gate_up, x, residual)
        return self._down(self._silu_mul(gate_up)), stream
