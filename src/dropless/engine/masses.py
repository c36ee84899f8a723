"""Probabilities as whole numbers, which add up to the same in any order.

A device adds floating-point numbers up in an order of its own choice, which depends on how many
rows there are; a token drawn from such sums would depend on the other requests of the step.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Of the likeliest token. 64 bits hold the sum over half a million tokens; what is less than 2^-44
# times as likely counts as impossible.
_UNITS = 2.0**44


def masses(scores: Tensor) -> Tensor:
    """exp(scores) in units that are the same for all: int64 of the same shape. `scores` are float32
    and at most 0; they are overwritten."""
    return scores.exp_().mul_(_UNITS).to(torch.int64)


def log_total(logits: Tensor) -> Tensor:
    """log(sum(exp(logits))) of each row of logits [n, vocab] float32: [n, 1] float32."""
    best = logits.amax(-1, keepdim=True)
    total = masses(logits - best).sum(-1, keepdim=True)
    return (best + (total.double() / _UNITS).log()).float()
