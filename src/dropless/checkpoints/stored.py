"""What checkpoints on disk have in common: any part of a tensor can be read by itself."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from dropless.checkpoints.checkpoint import Checkpoint, Read
from dropless.checkpoints.finite import check_finite
from dropless.checkpoints.slices import Slab
from dropless.errors import CheckpointError


class StoredCheckpoint(Checkpoint):
    """Its tensors lie in files. A reader knows their shapes (`_stored_shape`) and gets any part of
    one (`_copy_part`); `ReadAhead` reads many parts at once."""

    def locate(self, what: Read) -> Slab:
        """The rows and columns of a slice.

        Raises:
            CheckpointError: the tensor is absent, of an unsupported kind or of another shape.
        """
        if not self.has(what.name):
            raise CheckpointError(
                f"{self.path} holds no tensor {what.name}; is the model complete?"
            )
        return what.slab(self._stored_shape(what.name))

    def fill(self, out: Tensor, name: str, slab: Slab) -> None:
        """Read rows and columns of a tensor into `out`, [slab.num_rows, slab.num_columns],
        contiguous, in host memory, float32, float16 or bfloat16. Any thread may call it.

        Raises:
            CheckpointError: the bytes cannot be read, or `out` would hold NaN or infinity.
        """
        self._copy_part(out, name, slab)
        check_finite(out, name, self.path)

    def read_into(self, what: Read, out: Tensor) -> None:
        """See `Checkpoint.read_into`."""
        slab = self.locate(what)
        host = out if out.is_cpu else torch.empty(slab.shape, dtype=what.dtype)
        self.fill(host.view(slab.num_rows, slab.num_columns), what.name, slab)
        if host is not out:
            out.copy_(host)

    @abstractmethod
    def _stored_shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor that is there. Raises CheckpointError if it is of an unsupported kind."""

    @abstractmethod
    def _copy_part(self, out: Tensor, name: str, slab: Slab) -> None:
        """As `fill`, whatever the numbers are."""
