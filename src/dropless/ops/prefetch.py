"""A hint: weights that are needed soon."""

from __future__ import annotations

from torch import Tensor

from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.registry import Op


@Op
def prefetch_experts(x: Tensor, gate_up: Tensor | Fp8Tensor, top_k: int) -> None:
    """Start to bring the weights that `fused_experts` reads first nearer to the processor, while
    what stands before it computes, if that is likely to help. Changes nothing.

    Args:
        x: [T, hidden], or of any width: how many tokens there are.
        gate_up: [E, 2 * width, hidden], as for `fused_experts`.
    """
