"""A few ranks that all run the same check at the same time, the test's process being rank 0."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch
from torch._C._distributed_c10d import FileStore

from dropless.parallel.group import Group
from dropless.parallel.rank_messages import STARTED, Place, Reached
from dropless.parallel.rank_processes import RankProcesses

CPU = torch.device("cpu")
Check = Callable[[Group], None]


class Team:
    """`run` calls a function of an importable module on every rank. Processes start at once, so
    that several teams can, and meet when it is entered."""

    group: Group

    def __init__(self, size: int, timeout_s: float = 60.0, *, on_gpus: bool = False) -> None:
        self.size = size
        self.ranks = RankProcesses(size, _obey, (timeout_s, on_gpus))
        self._timeout_s = timeout_s
        self._on_gpus = on_gpus

    def run(self, check: Check) -> None:
        order = f"{check.__module__}:{check.__name__}"
        self.ranks.send(order.encode())
        check(self.group)
        self.ranks.wait_for(order)

    def __enter__(self) -> Team:
        torch.set_num_threads(1)
        self.ranks.wait_for(STARTED)
        self.group = _join(0, self.size, self.ranks.folder, self._timeout_s, self._on_gpus)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ranks.close()


def _join(rank: int, size: int, folder: Path, timeout_s: float, on_gpus: bool) -> Group:
    """With too few GPUs all share the first: NCCL refuses that, gloo and sums in one kernel do
    not."""
    if on_gpus and torch.cuda.device_count() >= size:
        torch.cuda.set_device(rank)
        return Group.join(rank, size, torch.device("cuda", rank), folder, timeout_s=timeout_s)
    group = Group.join(rank, size, CPU, folder, timeout_s=timeout_s)
    if on_gpus:
        from dropless.parallel.one_shot import OneShot

        store = FileStore(str(folder / "memory"), size)
        group.one_shot = OneShot.connect(rank, size, torch.device("cuda", 0), store, timeout_s)
    return group


def _obey(place: Place, timeout_s: float, on_gpus: bool) -> None:
    torch.set_num_threads(1)
    group = _join(place.rank, place.size, place.folder, timeout_s, on_gpus)
    while True:
        order = place.link.recv_bytes().decode()
        module, _, name = order.partition(":")
        __import__(module)
        getattr(sys.modules[module], name)(group)
        place.link.send(Reached(order))
