"""Building a model without its weights tells what will be read, in which order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dropless.checkpoints.checkpoint import Checkpoint
from dropless.checkpoints.slices import plan_slab


@dataclass(frozen=True, slots=True)
class Read:
    """The arguments of one `Checkpoint.read`, save the device."""

    name: str
    shape: tuple[int, ...]
    dim: int | None
    start: int
    length: int | None
    dtype: torch.dtype


class DryRun:
    """A `Checkpoint` whose tensors have a shape and no content; it notes what is read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path
        self.config = checkpoint.config
        self.eos_token_ids = checkpoint.eos_token_ids
        self.quantized = checkpoint.quantized
        self.has = checkpoint.has
        self.names = checkpoint.names
        self.reads: list[Read] = []

    def read(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        dim: int | None = None,
        start: int = 0,
        length: int | None = None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor:
        """See `Checkpoint.read`; any shape is right, and the device should be "meta"."""
        self.reads.append(Read(name, shape, dim, start, length, dtype))
        slab = plan_slab(name, shape, shape, dim, start, length)
        return torch.empty(slab.shape, dtype=dtype, device=device)
