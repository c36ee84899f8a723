"""What the server does right now, and did in the last hour: rates, gauges, latencies, usage.

Memory is bounded: a sample for each of the last 300 seconds, and slots of counts, never a list of
calls. All methods belong to one event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

import msgspec

from dropless.engine.client import AsyncEngineClient
from dropless.engine.messages import EngineStats
from dropless.server.call import Call

HISTORY_S = 300  # one sample a second
WINDOWS_S = {"1m": 60, "5m": 300, "60m": 3600}
PERCENTILES = (50, 95, 99)
MAX_USERS = 1000  # told apart within one minute; whoever comes later counts as OTHERS
OTHERS = "(others)"
NOBODY = "(not authenticated)"

_LATENCY_SLOT_S = 10
_USAGE_SLOT_S = 60
_HOUR_S = 3600
_BIN_RATIO = 1.05  # a percentile is off by 2.5 % at most
_PING_TIMEOUT_S = 0.5


class Sample(msgspec.Struct, frozen=True):
    """One second. Rates are of that second, `kv_used` is a share from 0 to 1; gauges are those of
    all engines together."""

    time: float
    requests_per_s: float
    failed_per_s: float
    tokens_in_per_s: float
    tokens_cached_per_s: float  # of tokens_in, found in the prefix cache
    tokens_out_per_s: float
    in_flight: int
    running: int
    waiting: int
    kv_used: float


class Percentiles(msgspec.Struct, frozen=True):
    """Milliseconds; None where there was no call."""

    count: int
    p50: float | None
    p95: float | None
    p99: float | None


class Histogram:
    """How many values fell into which bin; bins grow by `_BIN_RATIO`."""

    def __init__(self) -> None:
        self._bins: Counter[int] = Counter()

    def add(self, value: float) -> None:
        self._bins[round(math.log(max(value, 1e-3), _BIN_RATIO))] += 1

    def merge(self, other: Histogram) -> None:
        self._bins.update(other._bins)

    def percentiles(self) -> Percentiles:
        count = self._bins.total()
        return Percentiles(count, *(self._percentile(p, count) for p in PERCENTILES))

    def _percentile(self, percent: float, count: int) -> float | None:
        seen = 0
        for bin_ in sorted(self._bins):
            seen += self._bins[bin_]
            if seen >= percent / 100 * count:
                return float(f"{_BIN_RATIO**bin_:.4g}")
        return None


class Latencies:
    """Of calls that succeeded, in milliseconds."""

    def __init__(self) -> None:
        self.histograms = {"ttft_ms": Histogram(), "tpot_ms": Histogram(), "e2e_ms": Histogram()}

    def add(self, call: Call) -> None:
        self.histograms["e2e_ms"].add((call.end_time - call.arrival_time) * 1e3)
        if call.timings is not None:
            self.histograms["ttft_ms"].add(call.timings.ttft_ms)
            if call.timings.decode_tokens_per_s:
                self.histograms["tpot_ms"].add(1e3 / call.timings.decode_tokens_per_s)

    def merge(self, other: Latencies) -> None:
        for name, histogram in self.histograms.items():
            histogram.merge(other.histograms[name])


class UserUsage(msgspec.Struct):
    """What one user took."""

    name: str
    requests: int = 0
    failed: int = 0  # with a status of 400 or more
    tokens_in: int = 0
    tokens_out: int = 0
    last_time: float = 0.0

    def add(self, other: UserUsage) -> None:
        self.requests += other.requests
        self.failed += other.failed
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out
        self.last_time = max(self.last_time, other.last_time)


class Usage:
    """By user and by status."""

    def __init__(self) -> None:
        self.users: dict[str, UserUsage] = {}
        self.statuses: Counter[int] = Counter()

    def add(self, call: Call) -> None:
        self.statuses[call.status_code] += 1
        name = NOBODY if call.principal is None else call.principal.name
        if name not in self.users and len(self.users) >= MAX_USERS:
            name = OTHERS
        tokens_in = tokens_out = 0
        if call.usage is not None:
            tokens_in, tokens_out = call.usage.prompt_tokens, call.usage.completion_tokens
        failed = int(call.status_code >= 400)
        self._user(name).add(UserUsage(name, 1, failed, tokens_in, tokens_out, call.end_time))

    def merge(self, other: Usage) -> None:
        self.statuses.update(other.statuses)
        for name, user in other.users.items():
            self._user(name).add(user)

    def _user(self, name: str) -> UserUsage:
        return self.users.setdefault(name, UserUsage(name))


S = TypeVar("S", Latencies, Usage)


class _Slots(Generic[S]):
    """What was counted in each `width_s` seconds of the last hour."""

    def __init__(self, kind: Callable[[], S], width_s: int) -> None:
        self._kind: Callable[[], S] = kind
        self._width_s = width_s
        self._slots: deque[tuple[int, S]] = deque(maxlen=_HOUR_S // width_s + 1)

    def current(self, now: float) -> S:
        number = int(now // self._width_s)
        if not self._slots or self._slots[-1][0] < number:
            self._slots.append((number, self._kind()))
        return self._slots[-1][1]

    def since(self, start: float) -> S:
        """All slots together that end after `start`."""
        merged = self._kind()
        for number, slot in self._slots:
            if (number + 1) * self._width_s > start:
                merged.merge(slot)
        return merged


class LiveNumbers:
    """A CallObserver that also looks at the engines once a second."""

    def __init__(self) -> None:
        self.started = time.time()
        self.totals = EngineStats()  # gauges now, counters since the server started
        self._samples: deque[Sample] = deque(maxlen=HISTORY_S)
        self._latencies = _Slots(Latencies, _LATENCY_SLOT_S)
        self._usage = _Slots(Usage, _USAGE_SLOT_S)
        self._in_flight = 0
        self._ended = self._failed = 0  # since the last sample
        self._sampled_at = self.started
        self._last_stats: Mapping[Hashable, EngineStats] = {}

    def began(self, call: Call) -> None:  # noqa: ARG002, the protocol's
        self._in_flight += 1

    def accepted(self, call: Call) -> None:
        """Counted when it ends."""

    def ended(self, call: Call) -> None:
        self._in_flight -= 1
        self._ended += 1
        self._failed += call.status_code >= 400
        if call.status_code < 400:
            self._latencies.current(call.end_time).add(call)
        self._usage.current(call.end_time).add(call)

    async def watch(self, engines: Callable[[], Iterable[AsyncEngineClient]]) -> None:
        """Takes a sample every second until it is cancelled, of the engines that there are then."""
        while True:
            await asyncio.sleep(1.0)
            serving = [engine for engine in engines() if engine.state == "serving"]
            answers = await asyncio.gather(*(e.health(_PING_TIMEOUT_S) for e in serving))
            known = zip(serving, answers, strict=True)
            self.sample(time.time(), {e: a.stats for e, a in known if a.stats is not None})

    def sample(self, now: float, stats: Mapping[Hashable, EngineStats]) -> None:
        """Closes the time since the last sample, with what each engine says of itself at `now`."""
        elapsed = max(now - self._sampled_at, 1e-3)
        before = self.totals
        self.totals = self._add_up(stats)
        blocks = self.totals.kv_blocks_total

        def rate(name: str) -> float:
            grown: int = getattr(self.totals, name) - getattr(before, name)
            return grown / elapsed

        sample = Sample(
            time=now,
            requests_per_s=self._ended / elapsed,
            failed_per_s=self._failed / elapsed,
            tokens_in_per_s=rate("prompt_tokens"),
            tokens_cached_per_s=rate("prefix_hit_tokens"),
            tokens_out_per_s=rate("generated_tokens"),
            in_flight=self._in_flight,
            running=self.totals.running,
            waiting=self.totals.waiting,
            kv_used=(blocks - self.totals.kv_blocks_free) / blocks if blocks else 0.0,
        )
        self._samples.append(sample)
        self._sampled_at = now
        self._ended = self._failed = 0

    def samples(self, since: float = 0.0) -> list[Sample]:
        """Those after `since`, oldest first."""
        return [sample for sample in self._samples if sample.time > since]

    def latencies(self, now: float) -> dict[str, dict[str, Percentiles]]:
        """By window and figure. A window is up to 10 s longer than its name."""
        return {
            window: {
                name: histogram.percentiles()
                for name, histogram in self._latencies.since(now - seconds).histograms.items()
            }
            for window, seconds in WINDOWS_S.items()
        }

    def usage(self, now: float) -> Usage:
        """Of the last hour, up to a minute longer."""
        return self._usage.since(now - _HOUR_S)

    def _add_up(self, stats: Mapping[Hashable, EngineStats]) -> EngineStats:
        """All engines: gauges as they are, counters by what they grew. An engine that started
        again counts from 0."""
        grown = {name: getattr(self.totals, name) for name in _COUNTERS}
        for engine, now in stats.items():
            before = self._last_stats.get(engine, EngineStats())
            restarted = now.steps < before.steps
            for name in _COUNTERS:
                grown[name] += getattr(now, name) - (0 if restarted else getattr(before, name))
        self._last_stats = stats
        gauges = {name: _sum(stats.values(), name) for name in _GAUGES}
        return EngineStats(**grown, **gauges)


_GAUGES = ("running", "waiting", "kv_blocks_total", "kv_blocks_free")
_COUNTERS = (
    "steps",
    "prompt_tokens",
    "generated_tokens",
    "prefix_hit_tokens",
    "preemptions",
    "finished_requests",
)


def _sum(stats: Iterable[EngineStats], name: str) -> int:
    return sum(getattr(one, name) for one in stats)
