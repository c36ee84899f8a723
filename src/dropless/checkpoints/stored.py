"""What checkpoints on disk have in common: any part of a tensor can be read by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dropless.checkpoints.finite import check_finite
from dropless.checkpoints.slices import Slab


class StoredCheckpoint(ABC):
    """A `Checkpoint` whose tensors lie in files. A reader says where a slice is (`locate`) and
    gets any part of it (`_copy_part`); `ReadAhead` reads many parts at once."""

    path: Path
    config: Mapping[str, Any]
    eos_token_ids: tuple[int, ...]
    quantized: bool

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether the checkpoint holds this tensor."""

    @abstractmethod
    def names(self) -> list[str]:
        """All tensor names stored."""

    @abstractmethod
    def locate(
        self, name: str, shape: tuple[int, ...], dim: int | None, start: int, length: int | None
    ) -> Slab:
        """The rows and columns of a slice that `Checkpoint.read` describes.

        Raises:
            CheckpointError: the tensor is absent, of an unsupported kind or of another shape.
        """

    def fill(self, out: Tensor, name: str, slab: Slab) -> None:
        """Read rows and columns of a tensor into `out`, [slab.num_rows, slab.num_columns],
        contiguous, in host memory, float32, float16 or bfloat16. Any thread may call it.

        Raises:
            CheckpointError: the bytes cannot be read, or `out` would hold NaN or infinity.
        """
        self._copy_part(out, name, slab)
        check_finite(out, name, self.path)

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
        """See `Checkpoint.read`."""
        slab = self.locate(name, shape, dim, start, length)
        result = torch.empty(slab.shape, dtype=dtype)
        self.fill(result.view(slab.num_rows, slab.num_columns), name, slab)
        return result.to(device)

    @abstractmethod
    def _copy_part(self, out: Tensor, name: str, slab: Slab) -> None:
        """As `fill`, whatever the numbers are."""
