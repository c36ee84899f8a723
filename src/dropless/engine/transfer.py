"""Copies between host and device that nobody waits for: the device makes them in their turn."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 16  # bytes, as of tensors that have their memory alone: kernels are compiled for it


def to_device(device: torch.device, *arrays: NDArray[np.generic]) -> list[Tensor]:
    """Tensors of the same values, in one copy. They share one piece of memory.

    The copy starts from pinned memory, which PyTorch gives away again only after the copy.
    """
    starts = [0, *accumulate(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays)]
    packed = host_buffer(device, starts[-1], dtype=torch.uint8)
    bytes_ = packed.numpy()
    for array, start in zip(arrays, starts, strict=False):
        part = bytes_[start : start + array.nbytes].view(array.dtype)
        part.reshape(array.shape)[...] = array
    there = packed.to(device, non_blocking=True)
    return [
        there[start : start + array.nbytes].view(_torch_dtype(array.dtype)).view(array.shape)
        for array, start in zip(arrays, starts, strict=False)
    ]


def host_buffer(device: torch.device, *shape: int, dtype: torch.dtype) -> Tensor:
    """Memory of the host, uninitialised, that a copy to `device` can start from unwaited for."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


class Fetched:
    """Copies of tensors on their way to the host. The tensors may be overwritten at once: by what
    is launched on the same stream after this."""

    def __init__(self, *tensors: Tensor) -> None:
        """`tensors` are all on one device; on a CPU they are not copied."""
        # Unwaited for, `to` copies into pinned memory.
        self._tensors = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._event: torch.cuda.Event | None = None
        if tensors[0].device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def is_complete(self) -> bool:
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> list[Tensor]:
        """The copies, when they are complete."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensors


def _torch_dtype(dtype: np.dtype[np.generic]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
