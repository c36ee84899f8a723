"""A few ranks that all run the same check at the same time, the test's process being rank 0."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType

import torch

from dropless.parallel.group import Group
from dropless.parallel.rank_messages import STARTED, Place, Reached
from dropless.parallel.rank_processes import RankProcesses

CPU = torch.device("cpu")
Check = Callable[[Group], None]


class Team:
    """`run` calls a function of an importable module on every rank. Processes start at once, so
    that several teams can, and meet when it is entered."""

    group: Group

    def __init__(self, size: int, timeout_s: float = 60.0) -> None:
        self.size = size
        self.ranks = RankProcesses(size, _obey, (timeout_s,))
        self._timeout_s = timeout_s

    def run(self, check: Check) -> None:
        order = f"{check.__module__}:{check.__name__}"
        self.ranks.send(order.encode())
        check(self.group)
        self.ranks.wait_for(order)

    def __enter__(self) -> Team:
        torch.set_num_threads(1)
        self.ranks.wait_for(STARTED)
        folder, timeout_s = self.ranks.folder, self._timeout_s
        self.group = Group.join(0, self.size, CPU, folder, timeout_s=timeout_s)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ranks.close()


def _obey(place: Place, timeout_s: float) -> None:
    torch.set_num_threads(1)
    group = Group.join(place.rank, place.size, CPU, place.folder, timeout_s=timeout_s)
    while True:
        order = place.link.recv_bytes().decode()
        module, _, name = order.partition(":")
        __import__(module)
        getattr(sys.modules[module], name)(group)
        place.link.send(Reached(order))
