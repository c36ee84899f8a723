"""Latency, throughput and goodput from what a load client or the offline driver recorded.

Definitions, all as the client sees them, times in seconds from the start of the run:

- The clock of a request starts when it was due, so waiting for a free slot counts. In a closed
  loop it is due when it is sent.
- TTFT, time to first token: from the start of the clock to the first token.
- End to end: from the start of the clock to the end of the answer.
- TPOT, time per output token: (end to end - TTFT) / (output tokens - 1); none for one token.
- ITL, inter-token latency: each gap between two arrivals in turn; an arrival may hold several
  tokens.
- Throughput: tokens or requests of completed requests / the time from first due to last end.
- Goodput: completed requests per second that met every limit of the service level.

A failed request has no latency: it never counts as a fast one, and it misses the service level.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from dropless.errors import SettingsError


@dataclass(slots=True)
class RequestRecord:
    """What happened to one request. `arrivals` are the times at which new tokens arrived."""

    index: int
    start_s: float
    end_s: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    input_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    @property
    def ttft_s(self) -> float | None:
        """Time to first token; None for a failed request or one without output."""
        return self.arrivals[0] - self.start_s if self.arrivals and self.error is None else None

    @property
    def end_to_end_s(self) -> float | None:
        return self.end_s - self.start_s if self.error is None else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None below two tokens."""
        if self.ttft_s is None or self.output_tokens < 2:
            return None
        return (self.end_s - self.arrivals[0]) / (self.output_tokens - 1)

    @property
    def itl_s(self) -> list[float]:
        if self.error is not None:
            return []
        return [later - earlier for earlier, later in pairwise(self.arrivals)]


@dataclass(frozen=True, slots=True)
class ServiceLevel:
    """Limits that a good request keeps, in milliseconds; None: no limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None

    @classmethod
    def parse(cls, text: str) -> ServiceLevel:
        """`ttft=450,tpot=40`: any of ttft, tpot and e2e, in milliseconds.

        Raises:
            SettingsError: another name, a number that is none, or none at all.
        """
        limits: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            try:
                limit = float(value)
            except ValueError:
                limit = math.nan
            if name.strip() not in ("ttft", "tpot", "e2e") or not limit > 0:
                raise SettingsError(
                    f"{part!r} is no service level; write for example ttft=450,tpot=40 "
                    "(ttft, tpot or e2e, in milliseconds)"
                )
            limits[f"{name.strip()}_ms"] = limit
        return cls(**limits)

    def met_by(self, record: RequestRecord) -> bool:
        """Whether a request completed within every limit. One token alone meets any TPOT."""
        if record.error is not None:
            return False
        tpot = record.tpot_s
        return (
            _within(record.ttft_s, self.ttft_ms)
            and _within(record.end_to_end_s, self.e2e_ms)
            and (tpot is None or _within(tpot, self.tpot_ms))
        )


def _within(value_s: float | None, limit_ms: float | None) -> bool:
    return limit_ms is None or (value_s is not None and value_s * 1000 <= limit_ms)


def percentile(ordered: Sequence[float], level: float) -> float:
    """The `level` in 0..100 of values in ascending order, interpolated between neighbours."""
    position = (len(ordered) - 1) * level / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean, percentiles and maximum of a latency in milliseconds over `count` values."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of_seconds(cls, values: Iterable[float | None]) -> Distribution | None:
        """None when there is no value; None among the values is left out."""
        ordered = sorted(value * 1000 for value in values if value is not None)
        if not ordered:
            return None
        p50, p90, p95, p99 = (percentile(ordered, level) for level in (50, 90, 95, 99))
        mean = math.fsum(ordered) / len(ordered)
        return cls(len(ordered), mean, p50, p90, p95, p99, ordered[-1])


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one run. Rates are per second, latencies in milliseconds."""

    requests: int
    completed: int
    failed: int
    duration_s: float
    input_tokens: int
    output_tokens: int
    request_throughput: float
    input_throughput: float
    output_throughput: float
    ttft: Distribution | None
    tpot: Distribution | None
    itl: Distribution | None
    end_to_end: Distribution | None
    goodput: float | None  # requests per second within the service level; None: none was given
    attainment: float | None  # share of all requests, failed ones included, within it
    errors: dict[str, int]  # message -> how often


def summarize(records: Sequence[RequestRecord], level: ServiceLevel | None = None) -> Summary:
    """Figures of a run, over at least one record."""
    completed = [record for record in records if record.error is None]
    duration = max(r.end_s for r in records) - min(r.start_s for r in records)
    duration = max(duration, 1e-9)  # a run in which everything failed at once
    input_tokens = sum(record.input_tokens for record in completed)
    output_tokens = sum(record.output_tokens for record in completed)
    good = None if level is None else sum(level.met_by(record) for record in completed)
    return Summary(
        requests=len(records),
        completed=len(completed),
        failed=len(records) - len(completed),
        duration_s=duration,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        request_throughput=len(completed) / duration,
        input_throughput=input_tokens / duration,
        output_throughput=output_tokens / duration,
        ttft=Distribution.of_seconds(record.ttft_s for record in completed),
        tpot=Distribution.of_seconds(record.tpot_s for record in completed),
        itl=Distribution.of_seconds(gap for record in completed for gap in record.itl_s),
        end_to_end=Distribution.of_seconds(record.end_to_end_s for record in completed),
        goodput=None if good is None else good / duration,
        attainment=None if good is None else good / len(records),
        errors=dict(Counter(r.error for r in records if r.error is not None).most_common()),
    )
