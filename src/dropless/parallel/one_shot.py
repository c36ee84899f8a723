"""Sums of small tensors between the GPUs of one host, in one kernel that reads the others' parts
itself (`dropless.ops.triton.all_reduce`). Imported where Triton is installed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._distributed_c10d import Store

from dropless.ops.moe import ExpertOutputs
from dropless.ops.triton.all_reduce import (
    ARENA_BYTES,
    SLOT_BYTES,
    SLOTS,
    Ring,
    all_reduce_,
    all_reduce_norm,
)
from dropless.parallel.peer_memory import PeerMemory

LIMIT_BYTES = 2 << 20  # measured on two H200s: 11 us, NCCL 33; beyond it nothing was measured
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_POLLS_PER_S = 4_000_000  # no GPU is faster: a poll goes to the L2 cache and back


class OneShot:
    """What this rank needs for its part in such sums. All ranks must make the same calls in the
    same order with the same shapes and types, each on one stream."""

    def __init__(self, memory: PeerMemory, rank: int, timeout_s: float) -> None:
        """`memory` holds `ARENA_BYTES` a rank. A rank that does not come is waited for at least
        `timeout_s`."""
        self._memory = memory
        self.ring = Ring(
            arenas=memory.addresses,
            own=memory.addresses[rank],
            broken=torch.zeros(1, dtype=torch.int32, pin_memory=True),
            patience=int(timeout_s * _POLLS_PER_S),
        )

    @classmethod
    def connect(
        cls, rank: int, size: int, device: torch.device, store: Store, timeout_s: float
    ) -> OneShot | None:
        """To be called by all ranks at once. None, on all, where they cannot do it (see
        `PeerMemory.share`)."""
        memory = PeerMemory.share(ARENA_BYTES, rank, size, device, store)
        return None if memory is None else cls(memory, rank, timeout_s)

    def takes(self, x: Tensor) -> bool:
        """Whether `all_reduce` is for tensors like this."""
        return x.is_cuda and x.dtype in _DTYPES and 0 < x.nbytes <= LIMIT_BYTES

    def takes_rows(self, x: Tensor) -> bool:
        """Whether `all_reduce_norm` is for tensors [T, hidden] like this."""
        fits = len(x) <= SLOTS and x.shape[1] * x.element_size() <= SLOT_BYTES
        return fits and self.takes(x)

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of every rank's contiguous `x`, in place: added in float32 in rank order, rounded
        once, the same bits on every rank."""
        return all_reduce_(x, self.ring)

    def all_reduce_norm(
        self,
        x: Tensor | ExpertOutputs,
        residual: Tensor,
        weight: Tensor,
        eps: float,
        *,
        centred: bool,
    ) -> tuple[Tensor, Tensor]:
        """What `layer_norm` (`centred`) or `rms_norm` returns for `all_reduce(x)`. Contiguous; what
        experts made is in the order of pairs."""
        return all_reduce_norm(x, residual, weight, eps, self.ring, centred=centred)

    @property
    def is_broken(self) -> bool:
        """Whether a kernel has stopped waiting for the others. Ask when the device is done."""
        return bool(self.ring.broken.item())

    def abort(self) -> None:
        """Kernels that wait for other ranks stop waiting within a millisecond or so, and all that
        follow. Any thread may call it."""
        self.ring.broken.fill_(1)
