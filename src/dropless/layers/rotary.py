"""Rotary position embedding: the table of cosines and sines that a step's tokens look up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How positions are stretched beyond the trained context.

    "linear" divides every frequency by `factor`. "llama3" divides the low ones only: wavelengths
    above original / low_freq_factor wholly, those below original / high_freq_factor not at all,
    with a smooth passage between (Llama 3.1's model card and reference code).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


def rotary_table(
    head_dim: int,
    max_positions: int,
    theta: float,
    scaling: RopeScaling | None = None,
    *,
    device: torch.device,
) -> Tensor:
    """[max_positions, 2, head_dim] float32: for each position the cosines of the head_dim / 2
    angles, twice; and their sines, negated, then as they are (Su et al., "RoFormer", 2021). So a
    rotated head is head * cosines + (head with its halves exchanged) * sines."""
    if device.type == "meta":  # on which PyTorch's arithmetic begins with seconds of imports
        return torch.empty(max_positions, 2, head_dim, device=device)
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    frequencies = 1.0 / theta**exponents
    if scaling is not None:
        frequencies = _scaled(frequencies, scaling)
    positions = torch.arange(max_positions, dtype=torch.float32, device=device)
    angles = torch.outer(positions, frequencies)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)], dim=1)


def _scaled(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return kept * frequencies + (1.0 - kept) * frequencies / scaling.factor
