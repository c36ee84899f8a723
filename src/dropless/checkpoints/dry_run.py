"""Building a model without its weights tells what will be read, in which order."""

from __future__ import annotations

from torch import Tensor

from dropless.checkpoints.checkpoint import Checkpoint, CheckpointView, Read


class DryRun(CheckpointView):
    """It reads nothing, into tensors that have a shape and no content, and notes what was asked."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.reads: list[Read] = []
        self.num_bytes = 0  # of all reads

    def read_into(self, what: Read, out: Tensor) -> None:
        """See `Checkpoint.read_into`; any shape is right, and `out` should be on "meta"."""
        shape = what.slab(what.shape).shape
        if (out.shape, out.dtype) != (shape, what.dtype):
            raise RuntimeError(f"{what} has shape {shape}, and its place {list(out.shape)}")
        self.reads.append(what)
        self.num_bytes += out.nbytes
