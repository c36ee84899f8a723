"""Choices of experts made up: even, skewed, or shifted to one rank's experts."""

from __future__ import annotations

import torch
from torch import Tensor


def zipf_choices(num_tokens: int, experts: int, top_k: int, exponent: float) -> Tensor:
    """[T, top_k] int64 on the CPU, distinct in a row: drawn without replacement, an expert's weight
    being 1 / place^exponent. Exponent 0 is even. The same each time."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.arange(1, experts + 1, dtype=torch.float64) ** -exponent
    return torch.multinomial(weights.expand(num_tokens, -1), top_k, generator=generator)


def shifted_choices(num_tokens: int, experts: int, top_k: int, share: float, draw: int) -> Tensor:
    """[T, top_k] int64 on the CPU, distinct in a row: each choice falls with chance `share` on the
    first half of the experts, and is even within its half, which has at least `top_k`. The same
    each time for one `draw`."""
    generator = torch.Generator().manual_seed(draw)
    half = experts // 2
    is_first = torch.rand(num_tokens, top_k, generator=generator) < share
    first, second = (
        torch.rand(num_tokens, half, generator=generator).argsort(1)[:, :top_k] for _ in "fs"
    )
    return torch.where(is_first, first, second + half)
