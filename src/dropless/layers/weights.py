"""Where layers take their weights from: this rank's part of a checkpoint, in the model's format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dropless.checkpoints.checkpoint import Checkpoint
from dropless.ops.half_linear import PackedHalf, pack_half
from dropless.parallel.group import SOLO, Group

WeightFormat = Literal["none", "fp16"]


class Weights:
    """Reads tensors whole or cut for one rank, and keeps count of what was read.

    `dtype` is that of activations, norms and biases. Matrices have it too, or with the format
    "fp16" are kept as float16 and multiplied with float32 activations.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device,
        group: Group = SOLO,
        quantization: WeightFormat = "none",
        on_read: Callable[[int], None] | None = None,
    ) -> None:
        """`on_read` is told after each tensor how many bytes are held so far."""
        self.dtype = dtype
        self.matrix_dtype = torch.float16 if quantization == "fp16" else dtype
        self.device = device
        self.group = group
        self.num_bytes = 0
        self._checkpoint = checkpoint
        self._on_read = on_read
        self._names: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds this tensor."""
        return self._checkpoint.has(name)

    def vector(self, name: str, size: int) -> Tensor:
        """A norm's weight or a bias, whole: [size]."""
        return self._read(name, (size,), dtype=self.dtype)

    def vector_part(self, name: str, size: int) -> Tensor:
        """This rank's even part of a bias: [size / ranks]."""
        start, length = self.group.slice_of(size, name)
        return self._read(name, (size,), dtype=self.dtype, dim=0, start=start, length=length)

    def matrix(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of two or more dimensions, whole."""
        return self._read(name, shape, dtype=dtype or self.matrix_dtype)

    def matrix_part(
        self, name: str, shape: tuple[int, ...], dim: int, dtype: torch.dtype | None = None
    ) -> Tensor:
        """This rank's even part of dimension `dim`; `shape` is that of the whole."""
        start, length = self.group.slice_of(shape[dim], name)
        return self._read(
            name, shape, dtype=dtype or self.matrix_dtype, dim=dim, start=start, length=length
        )

    def rows_part(self, name: str, shape: tuple[int, int], start: int, length: int) -> Tensor:
        """This rank's even part of the rows `start : start + length` of a matrix."""
        own_start, own_length = self.group.slice_of(length, name)
        return self._read(
            name,
            shape,
            dtype=self.matrix_dtype,
            dim=0,
            start=start + own_start,
            length=own_length,
        )

    def pack(self, matrix: Tensor, *, keeps_matrix: bool = False) -> Tensor | PackedHalf:
        """A matrix that was read in the form that `Linear` multiplies with. `keeps_matrix` says
        that the matrix stays in use beside it."""
        if self.matrix_dtype == self.dtype:
            return matrix
        packed = pack_half(matrix)
        self._count(packed.nbytes - (0 if keeps_matrix else matrix.nbytes))
        return packed

    def unread(self) -> list[str]:
        """Names of the checkpoint's tensors that nothing has asked for."""
        return [name for name in self._checkpoint.names() if name not in self._names]

    def _count(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        if self._on_read is not None:
            self._on_read(self.num_bytes)

    def _read(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype,
        dim: int | None = None,
        start: int = 0,
        length: int | None = None,
    ) -> Tensor:
        self._names.add(name)
        tensor = self._checkpoint.read(
            name, shape, dim=dim, start=start, length=length, dtype=dtype, device=self.device
        )
        self._count(tensor.nbytes)
        return tensor
