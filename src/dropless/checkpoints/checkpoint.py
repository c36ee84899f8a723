"""What every checkpoint offers, whatever its file format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch


class Checkpoint(Protocol):
    """Tensors by their published (Hugging Face) names, plus the configuration they belong to.

    GGUF names and layouts are translated by the reader, so that models know one naming only.
    """

    path: Path
    config: Mapping[str, Any]  # the content of config.json, or its equivalent
    eos_token_ids: tuple[int, ...]  # from generation_config, config or GGUF metadata
    quantized: bool  # whether the stored weights are already below 16 bits

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds this tensor."""
        ...

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
        contiguous and owns its memory.

        Raises:
            CheckpointError: the tensor is absent, has another shape, is cut short, or holds NaN
                or infinity.
        """
        ...

    def names(self) -> list[str]:
        """All tensor names stored; empty for generated weights, which make any."""
        ...
