"""Where layers take their weights from: this rank's part of a checkpoint, in the model's format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dropless.checkpoints.checkpoint import Checkpoint, Read
from dropless.ops.fp8 import Fp8Tensor, quantize_into
from dropless.ops.half_linear import PackedHalf, pack_half
from dropless.parallel.group import SOLO, Group

WeightFormat = Literal["none", "fp16", "fp8"]


class Weights:
    """Reads tensors whole or cut for one rank, and keeps count of what is held.

    `dtype` is that of activations, norms and biases, and of matrices, unless a format says
    otherwise:

    - "fp16": matrices are float16 and multiplied with float32 activations; experts are of `dtype`.
    - "fp8": linear layers and experts are `Fp8Tensor`s. The router and the output head, whose small
      differences choose between experts and between tokens, are not, nor is the embedding, of
      which a step reads a few rows: together they are 1 % of DBRX.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device,
        group: Group = SOLO,
        quantization: WeightFormat = "none",
        expert_parallel: bool = False,
        batch_invariant: bool = False,
        on_read: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`expert_parallel`: each rank has some experts whole and not a part of each.
        `batch_invariant`: layers are to call ops in their batch-invariant form. `on_read` is told
        the bytes of each tensor or slice that has been read."""
        self.dtype = dtype
        self.matrix_dtype = torch.float16 if quantization == "fp16" else dtype
        self.device = device
        self.group = group
        self.quantization = quantization
        self.expert_parallel = expert_parallel
        self.batch_invariant = batch_invariant
        self.num_bytes = 0
        self._checkpoint = checkpoint
        self._on_read = on_read
        self._names: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds this tensor."""
        return self._checkpoint.has(name)

    def vector(self, name: str, size: int) -> Tensor:
        """A norm's weight or a bias, whole: [size]."""
        return self._hold(name, (size,), self.dtype)

    def matrix(self, name: str, shape: tuple[int, int], dtype: torch.dtype | None = None) -> Tensor:
        """A matrix, whole; `dtype` is `matrix_dtype` unless given."""
        return self._hold(name, shape, dtype or self.matrix_dtype)

    def matrix_rows(self, name: str, shape: tuple[int, int]) -> Tensor:
        """This rank's even part of a matrix' rows; `shape` is that of the whole."""
        start, length = self.group.slice_of(shape[0], name)
        return self._hold(name, shape, self.matrix_dtype, 0, start, length)

    def room(
        self, shape: tuple[int, ...], dtype: torch.dtype, *, lies_transposed: bool = False
    ) -> Tensor | Fp8Tensor:
        """Matrices [..., out, in] of a layer, of `dtype` or of 8 bits, to be filled by `fill`.
        `lies_transposed` is for those that are stored [in, out]: unless they get 8 bits, memory
        has them so, too."""
        if self.quantization == "fp8":
            return Fp8Tensor.empty(shape, self.device)
        if lies_transposed:
            stored = (*shape[:-2], shape[-1], shape[-2])
            return torch.empty(stored, dtype=dtype, device=self.device).mT
        return torch.empty(shape, dtype=dtype, device=self.device)

    def fill(
        self,
        place: Tensor | Fp8Tensor,
        name: str,
        shape: tuple[int, ...],
        *,
        dim: int | None = None,
        start: int = 0,
        length: int | None = None,
        stored_transposed: bool = False,
    ) -> None:
        """Read a tensor or a slice of it (`Checkpoint.read`) into a part of a `room`, straight
        unless it gets 8 bits. `stored_transposed` says that it is that part's transpose."""
        self._names.add(name)
        if isinstance(place, Fp8Tensor):
            part = self._checkpoint.read(
                name,
                shape,
                dim=dim,
                start=start,
                length=length,
                dtype=self.dtype,
                device=self.device,
            )
            if not part.is_meta:
                quantize_into(place, part.mT if stored_transposed else part)
            self._on_read(part.nbytes)
        else:
            what = Read(name, shape, dim, start, length, place.dtype)
            self._checkpoint.read_into(what, place.mT if stored_transposed else place)
            self._on_read(place.nbytes)
        self.num_bytes += place.nbytes

    def pack(
        self, matrix: Tensor | Fp8Tensor, *, keeps_matrix: bool = False
    ) -> Tensor | Fp8Tensor | PackedHalf:
        """A matrix that is held in the form that `Linear` multiplies with. `keeps_matrix` says
        that the matrix stays in use beside it."""
        if isinstance(matrix, Fp8Tensor) or self.matrix_dtype == self.dtype:
            return matrix
        packed = pack_half(matrix)
        self.num_bytes += packed.nbytes - (0 if keeps_matrix else matrix.nbytes)
        return packed

    def unread(self) -> list[str]:
        """Names of the checkpoint's tensors that nothing has asked for."""
        return [name for name in self._checkpoint.names() if name not in self._names]

    def _hold(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        dim: int | None = None,
        start: int = 0,
        length: int | None = None,
    ) -> Tensor:
        self._names.add(name)
        tensor = self._checkpoint.read(
            name, shape, dim=dim, start=start, length=length, dtype=dtype, device=self.device
        )
        self._on_read(tensor.nbytes)
        self.num_bytes += tensor.nbytes
        return tensor
