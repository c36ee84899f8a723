"""The gated activation between the two halves of a feed-forward layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dropless.ops.registry import Op


@Op
def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, [T, width], of gate_up [T, 2 * width] = gate | up."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
