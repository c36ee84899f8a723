"""The dense feed-forward layer: SiLU-gated."""

from __future__ import annotations

from torch import Tensor

from dropless.layers.linear import RowParallelLinear, Rows, column_parallel
from dropless.layers.weights import Weights
from dropless.ops.activation import silu_mul


class GatedMLP:
    """down(silu(gate(x)) * up(x)), with gate and up as one matrix."""

    def __init__(
        self,
        weights: Weights,
        hidden_size: int,
        width: int,
        *,
        gate: str,
        up: str,
        down: str,
        bias: bool = False,
    ) -> None:
        """`gate`, `up` [width, hidden] and `down` [hidden, width] are the weights' names."""
        outputs = [Rows(gate, width), Rows(up, width)]
        self._gate_up = column_parallel(weights, hidden_size, outputs, bias=bias)
        self._silu_mul = silu_mul.form(batch_invariant=weights.batch_invariant)
        self._down = RowParallelLinear(weights, down, width, hidden_size, bias=bias)

    def __call__(self, x: Tensor) -> Tensor:
        """[num_tokens, hidden] to this rank's part of the sum, which the next norm makes."""
        return self._down(self._silu_mul(self._gate_up(x)))
