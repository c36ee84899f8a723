"""Building a model without its weights tells what will be read, in which order."""

from __future__ import annotations

import torch
from torch import Tensor

from dropless.checkpoints.checkpoint import Checkpoint, CheckpointView, Read


class DryRun(CheckpointView):
    """Its tensors have a shape and no content; it notes what is read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.reads: list[Read] = []

    def read_slice(self, what: Read, device: torch.device) -> Tensor:
        """See `Checkpoint.read`; any shape is right, and the device should be "meta"."""
        self.reads.append(what)
        return torch.empty(what.slab(what.shape).shape, dtype=what.dtype, device=device)
