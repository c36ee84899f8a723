"""How much each expert of a mixture had to do: since its engine started, and in the last minute."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from dropless.engine.client import AsyncEngineClient

_EVERY_S = 2.0
_SNAPSHOT_S = 10.0
_SNAPSHOTS = 7  # a minute between the first and the last

Counts = list[list[int]]  # layers x experts: how many (token, choice) pairs went to the expert


class ExpertLoad(msgspec.Struct, frozen=True):
    """Counts of the last `window_s` seconds, and since the engine started."""

    window_s: float
    window: Counts
    total: Counts


class ExpertLoads:
    """Of one engine, whose counts only grow until it starts again."""

    def __init__(self) -> None:
        self._snapshots: deque[tuple[float, Counts]] = deque(maxlen=_SNAPSHOTS)
        self._latest: tuple[float, Counts] | None = None

    def note(self, now: float, total: Counts) -> None:
        """The engine's counts at `now`."""
        if self._latest is not None and _sum(total) < _sum(self._latest[1]):
            self._snapshots.clear()
        if not self._snapshots or now - self._snapshots[-1][0] >= _SNAPSHOT_S:
            self._snapshots.append((now, total))
        self._latest = now, total

    def load(self) -> ExpertLoad | None:
        """None before the first note."""
        if self._latest is None:
            return None
        (start, before), (now, total) = self._snapshots[0], self._latest
        return ExpertLoad(now - start, _difference(total, before), total)


class ExpertWatch:
    """The loads of all engines that serve a mixture. All methods belong to one event loop."""

    def __init__(self) -> None:
        self._loads: dict[AsyncEngineClient, ExpertLoads] = {}

    async def watch(self, engines: Callable[[], Iterable[AsyncEngineClient]]) -> None:
        """Asks the engines that there are, every few seconds, until it is cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            asked = list(engines())
            counts = await asyncio.gather(*(engine.expert_counts() for engine in asked))
            self._loads = {engine: self._loads.get(engine, ExpertLoads()) for engine in asked}
            for engine, total in zip(asked, counts, strict=True):
                if total:
                    self._loads[engine].note(time.time(), total)

    def load(self, engine: AsyncEngineClient) -> ExpertLoad | None:
        """None for a dense model, and before it is known."""
        loads = self._loads.get(engine)
        return None if loads is None else loads.load()


def _sum(counts: Counts) -> int:
    return sum(map(sum, counts))


def _difference(after: Counts, before: Counts) -> Counts:
    rows = zip(after, before, strict=True)
    return [[a - b for a, b in zip(*row, strict=True)] for row in rows]
