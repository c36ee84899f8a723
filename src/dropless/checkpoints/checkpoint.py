"""What every checkpoint offers, whatever its file format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dropless.checkpoints.slices import Slab, plan_slab


@dataclass(frozen=True, slots=True)
class Read:
    """A part of a tensor, as `Checkpoint.read` is asked for it."""

    name: str
    shape: tuple[int, ...]
    dim: int | None
    start: int
    length: int | None
    dtype: torch.dtype

    def slab(self, stored: tuple[int, ...]) -> Slab:
        """Its rows and columns in a tensor stored with this shape. Raises as `plan_slab`."""
        return plan_slab(self.name, stored, self.shape, self.dim, self.start, self.length)


class Checkpoint(ABC):
    """Tensors by their published (Hugging Face) names, plus the configuration they belong to.

    GGUF names and layouts are translated by the reader, so that models know one naming only.
    """

    path: Path
    config: Mapping[str, Any]  # the content of config.json, or its equivalent
    eos_token_ids: tuple[int, ...]  # from generation_config, config or GGUF metadata
    quantized: bool  # whether the stored weights are already below 16 bits

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether the checkpoint holds this tensor."""

    @abstractmethod
    def names(self) -> list[str]:
        """All tensor names stored; empty for generated weights, which make any."""

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
    ) -> torch.Tensor:
        """The tensor, or the slice `start : start + length` of its dimension `dim`.

        `shape` is the full, expected shape: the stored one, or a view of it that splits the first
        dimension (merged experts stored `[experts * width, hidden]`, read as
        `(experts, width, hidden)`, so that `dim=1` cuts each expert). `length=None` reaches to
        the end. Only the slice's bytes are read from disk where the format allows. The result is
        contiguous and owns its memory. Raises as `read_into`.
        """
        what = Read(name, shape, dim, start, length, dtype)
        out = torch.empty(what.slab(shape).shape, dtype=dtype, device=device)
        self.read_into(what, out)
        return out

    @abstractmethod
    def read_into(self, what: Read, out: torch.Tensor) -> None:
        """Fill `out`, contiguous, of the slice's shape and `what.dtype`, on any device.

        Raises:
            CheckpointError: the tensor is absent, has another shape, is cut short, or holds NaN
                or infinity.
        """


class CheckpointView(Checkpoint):
    """The configuration and the names of another one, to be read in another way."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path
        self.config = checkpoint.config
        self.eos_token_ids = checkpoint.eos_token_ids
        self.quantized = checkpoint.quantized
        self._checkpoint = checkpoint

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds this tensor."""
        return self._checkpoint.has(name)

    def names(self) -> list[str]:
        """All tensor names stored."""
        return self._checkpoint.names()
