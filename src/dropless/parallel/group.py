"""A group of ranks and its collectives: gloo between CPU processes, NCCL between GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch._C._distributed_c10d import (
    AllgatherOptions,
    AllreduceOptions,
    BroadcastOptions,
    ErrorType,
    FileStore,
    ProcessGroupGloo,
    Store,
)

from dropless.errors import EngineError, SettingsError
from dropless.ops.moe import ExpertOutputs, combined
from dropless.ops.norm import layer_norm
from dropless.ops.registry import Op

if TYPE_CHECKING:
    from dropless.parallel.one_shot import OneShot

Norm: TypeAlias = Op[[Tensor | ExpertOutputs, Tensor | None, Tensor, float], tuple[Tensor, Tensor]]

_JOIN_TIMEOUT_S = 30.0  # all ranks are up when they join
# A dead rank ends a collective at once. This is for one that lives but does not come: longer than
# the slowest rank can be behind the fastest, reading its weights included.
_COLLECTIVE_TIMEOUT_S = 600.0
_GATHERED_BYTES = 16 << 20  # of each rank at a time, where sums are made in order

# PyTorch watches over NCCL from threads of its own. They may end a collective that failed, but not
# this process, nor keep it from ending while they tell ranks that are gone.
_NCCL_WATCH = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "2",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "1",
    "TORCH_FR_BUFFER_SIZE": "0",  # a record of every call, with its stack
}
_AFTERLIFE_S = 1.0  # the store's patience once the ranks have met and need it no more


class PeersLostError(EngineError):
    """A collective failed because another rank is gone or does not come."""


class Group:
    """This process' place among the ranks that share one model. Alone, collectives do nothing.

    No global state: a process may be in several groups at once. Every rank must call the same
    collectives in the same order with the same shapes and types. One thread at a time uses a
    group, except for `abort`.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        backend: Any = None,
        one_shot: OneShot | None = None,
    ) -> None:
        """`backend` is a connected ProcessGroupGloo or ProcessGroupNCCL, whose methods PyTorch's
        types do not show (`Group.join`). None: nothing is exchanged, as in a group of one.
        `one_shot` sums what is small on GPUs, where it can."""
        self.rank = rank
        self.size = size
        self.one_shot = one_shot
        self.backend = backend
        self._is_alone = False

    @classmethod
    def join(
        cls,
        rank: int,
        size: int,
        device: torch.device,
        folder: Path,
        *,
        timeout_s: float = _COLLECTIVE_TIMEOUT_S,
    ) -> Group:
        """Meet the other ranks in `folder`, which is theirs alone and empty at first.

        `device` is where this rank's tensors are. `timeout_s` bounds every collective.

        Raises:
            PeersLostError: not all ranks came within 30 seconds.
        """
        if size == 1:
            return cls()
        store = FileStore(str(folder / "ranks"), size)
        join_timeout = timedelta(seconds=_JOIN_TIMEOUT_S)
        store.set_timeout(join_timeout)
        connect = _connect_gpus if device.type == "cuda" else _connect_cpus
        try:
            backend = connect(store, rank, size, join_timeout)
            group = cls(rank, size, backend)
            group.all_reduce(torch.zeros(1, device=device)).item()  # NCCL connects at its first
            if device.type == "cuda":
                group.one_shot = _connect_one_shot(store, rank, size, device, timeout_s)
            backend._set_default_timeout(timedelta(seconds=timeout_s))
            store.set_timeout(timedelta(seconds=_AFTERLIFE_S))
        except (RuntimeError, PeersLostError) as error:
            raise PeersLostError(
                f"rank {rank} of {size} did not meet the other ranks, for which it waits up to "
                f"{_JOIN_TIMEOUT_S:.0f} s; their own errors say why"
            ) from error
        return group

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Meanwhile collectives do nothing, and this rank need not keep step with the others."""
        self._is_alone = True
        try:
            yield
        finally:
            self._is_alone = False

    @property
    def has_peers(self) -> bool:
        """Whether there is anybody to exchange with, though perhaps not now (`alone`): who asks
        calls the same kernels in both cases."""
        return self.backend is not None

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of every rank's `x`; in place where `x` is contiguous.

        Raises:
            PeersLostError: another rank is gone or did not come in time.
        """
        if self.backend is None or self._is_alone:
            return x
        x = x.contiguous()
        if self.one_shot is not None and self.one_shot.takes(x):
            return self.one_shot.all_reduce(x)
        options = AllreduceOptions()
        options.asyncOp = False  # a GPU runs it on the current stream
        with self._naming_lost_peers():
            _wait(self.backend.allreduce([x], options))
        return x

    def all_reduce_in_order(self, x: Tensor) -> Tensor:
        """The sum of every rank's `x`, of floating point, each element of which is added up in
        float32 in rank order and rounded once, however many there are and wherever it stands;
        `all_reduce` takes another order for another shape. May or may not change `x`.

        Raises:
            PeersLostError: another rank is gone or did not come in time.
        """
        if self.size <= 2:  # two parts have but one order
            return self.all_reduce(x)
        x = x.contiguous()
        if self.one_shot is not None and not self._is_alone and self.one_shot.takes(x):
            return self.one_shot.all_reduce(x)
        pieces = torch.split(x.view(-1), _GATHERED_BYTES // x.element_size())
        return torch.cat([self._sum_in_order(piece) for piece in pieces]).view(x.shape)

    def _sum_in_order(self, piece: Tensor) -> Tensor:
        parts = self.all_gather(piece, 0).view(-1, len(piece))
        total = torch.zeros(len(piece), dtype=torch.float32, device=piece.device)
        for part in parts:
            total += part
        return total.to(piece.dtype)

    def sums_with_norm(self, x: Tensor) -> bool:
        """Whether `all_reduce_norm` of tensors [T, hidden] like x is one kernel, unless `alone`."""
        return self.one_shot is not None and self.one_shot.takes_rows(x)

    def all_reduce_norm(
        self,
        norm: Norm,
        x: Tensor | ExpertOutputs,
        residual: Tensor,
        weight: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """`norm(all_reduce(x), residual, weight, eps)`, with `layer_norm` or `rms_norm`: in one
        kernel if it can be. May or may not change `x`.

        Raises:
            PeersLostError: another rank is gone or did not come in time.
        """
        if self.one_shot is None or self._is_alone or not self.one_shot.takes_rows(residual):
            return norm(self.all_reduce(combined(x)), residual, weight, eps)
        if isinstance(x, Tensor) or x.places is not None:
            x = combined(x).contiguous()
        return self.one_shot.all_reduce_norm(
            x, residual.contiguous(), weight, eps, centred=norm is layer_norm
        )

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        """Every rank's `x`, concatenated along `dim` in rank order.

        Raises:
            PeersLostError: another rank is gone or did not come in time.
        """
        if self.backend is None or self._is_alone:
            return x
        x = x.contiguous()
        stacked = x.new_empty((self.size * x.shape[0], *x.shape[1:]))
        options = AllgatherOptions()
        options.asyncOp = False
        with self._naming_lost_peers():
            _wait(self.backend._allgather_base(stacked, x, options))
        return stacked if dim == 0 else torch.cat(stacked.chunk(self.size), dim)

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's `x` on every rank; in place where `x` is contiguous.

        Raises:
            PeersLostError: another rank is gone or did not come in time.
        """
        if self.backend is None or self._is_alone:
            return x
        x = x.contiguous()
        options = BroadcastOptions()
        options.rootRank = 0
        options.asyncOp = False
        with self._naming_lost_peers():
            _wait(self.backend.broadcast([x], options))
        return x

    def slice_of(self, size: int, what: str) -> tuple[int, int]:
        """Start and length of this rank's even part of `size` things.

        Raises:
            SettingsError: `size` does not divide evenly; the message names `what` they are.
        """
        if size % self.size:
            fitting = [str(n) for n in range(1, self.size) if size % n == 0]
            raise SettingsError(
                f"{what}: {size} cannot be shared evenly among {self.size} ranks; set "
                f"tensor_parallel_size to {' or '.join(fitting)}"
            )
        length = size // self.size
        return self.rank * length, length

    def check(self) -> None:
        """On a GPU a collective that was given up ends without an exception; this raises one.

        Raises:
            PeersLostError: a collective failed since the group was joined.
        """
        if self.backend is None:
            return
        nccl_failed = (
            self.backend.name() == "nccl" and self.backend.get_error() != ErrorType.SUCCESS
        )
        if nccl_failed or (self.one_shot is not None and self.one_shot.is_broken):
            raise self._lost()

    def abort(self) -> None:
        """Disconnect from the others. Any thread may call it. On a GPU it ends a collective in
        progress; on a CPU one ends when the other rank's process does."""
        if self.one_shot is not None:
            self.one_shot.abort()
        if self.backend is not None:
            self.backend.abort()

    @contextmanager
    def _naming_lost_peers(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self._lost() from error

    def _lost(self) -> PeersLostError:
        return PeersLostError(
            f"rank {self.rank} of {self.size} lost another rank while they computed together"
        )


SOLO = Group()


def _wait(work: Any) -> None:
    if work is not None:  # NCCL has none for what runs on the current stream
        work.wait()


def _connect_cpus(store: Store, rank: int, size: int, timeout: timedelta) -> Any:
    gloo: Any = ProcessGroupGloo
    options = gloo._Options()
    options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout = timeout
    return gloo(store, rank, size, options)


def _connect_gpus(store: Store, rank: int, size: int, timeout: timedelta) -> Any:
    from torch._C._distributed_c10d import ProcessGroupNCCL  # absent from builds for CPUs

    os.environ.update(_NCCL_WATCH)
    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    return ProcessGroupNCCL(store, rank, size, options)


def _connect_one_shot(
    store: Store, rank: int, size: int, device: torch.device, timeout_s: float
) -> OneShot | None:
    if find_spec("triton") is None:
        return None
    from dropless.parallel.one_shot import OneShot

    return OneShot.connect(rank, size, device, store, timeout_s)
