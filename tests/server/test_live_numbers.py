"""Rates, gauges, percentiles and usage from calls and engine stats, in bounded memory."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropless.engine.messages import EngineStats
from dropless.server import live_numbers
from dropless.server.call import Call
from dropless.server.generation import Timings, Usage
from dropless.server.identity.principal import Principal
from dropless.server.live_numbers import HISTORY_S, NOBODY, OTHERS, Histogram, LiveNumbers

NOW = 1_800_000_000.0


def call(
    end: float,
    *,
    user: str | None = "ada",
    status: int = 200,
    ttft_ms: float = 100.0,
    **options: Any,
) -> Call:
    made = Call("req-1", end - 1.0, "chat", None if user is None else Principal(user), "dbrx")
    made.end_time, made.status_code = end, status
    made.usage = Usage(30, 10, 0)
    made.timings = Timings(1.0, ttft_ms, 1000.0, options.get("decode", 50.0), 0, 1000.0)
    return made


def numbers(started: float = NOW) -> LiveNumbers:
    made = LiveNumbers()
    made._sampled_at = started
    return made


def test_rates_are_of_the_time_since_the_last_sample() -> None:
    live = numbers()
    first, second = call(NOW + 0.5), call(NOW + 1.5, status=429)
    for each in (first, second):
        live.began(each)
    live.ended(first)
    live.sample(NOW + 1, {"a": EngineStats(running=1, prompt_tokens=30, generated_tokens=10)})
    live.ended(second)
    stats = EngineStats(
        steps=9, waiting=2, prompt_tokens=90, generated_tokens=30, prefix_hit_tokens=48,
        kv_blocks_total=100, kv_blocks_free=75,
    )  # fmt: skip
    live.sample(NOW + 3, {"a": stats})
    one, two = live.samples()
    assert (one.requests_per_s, one.failed_per_s, one.in_flight, one.running) == (1, 0, 1, 1)
    assert (two.requests_per_s, two.failed_per_s, two.in_flight, two.waiting) == (0.5, 0.5, 0, 2)
    assert (one.tokens_in_per_s, one.tokens_out_per_s) == (30, 10)
    assert (two.tokens_in_per_s, two.tokens_out_per_s, two.tokens_cached_per_s) == (30, 10, 24)
    assert two.kv_used == 0.25
    assert live.samples(since=NOW + 1) == [two]


def test_engines_are_added_up_and_may_restart_come_and_go() -> None:
    live = numbers()
    live.sample(NOW + 1, {"a": EngineStats(steps=5, generated_tokens=100)})
    live.sample(NOW + 2, {"a": EngineStats(steps=1, generated_tokens=7), "b": EngineStats(1, 2)})
    assert live.totals.generated_tokens == 107  # the new process' 7, not 7 less than 100
    assert (live.totals.running, live.totals.waiting) == (1, 2)
    live.sample(NOW + 3, {})
    assert live.totals.generated_tokens == 107
    assert live.totals.running == 0
    live.sample(NOW + 4, {"a": EngineStats(steps=9, generated_tokens=5)})
    assert live.totals.generated_tokens == 112
    assert all(sample.tokens_out_per_s >= 0 for sample in live.samples())


def test_latencies_by_window_of_calls_that_succeeded() -> None:
    live = numbers()
    for ago, ttft in ((3000, 4000.0), (200, 400.0), (30, 100.0), (20, 200.0), (10, 300.0)):
        live.ended(call(NOW - ago, ttft_ms=ttft))
    live.ended(call(NOW - 5, status=503, ttft_ms=9e9))
    windows = live.latencies(NOW)
    counts = {window: figures["ttft_ms"].count for window, figures in windows.items()}
    assert counts == {"1m": 3, "5m": 4, "60m": 5}
    assert windows["1m"]["ttft_ms"].p50 == pytest.approx(200, rel=0.026)
    assert windows["60m"]["ttft_ms"].p99 == pytest.approx(4000, rel=0.026)
    assert windows["5m"]["tpot_ms"].p50 == pytest.approx(20, rel=0.026)
    assert windows["5m"]["e2e_ms"].p95 == pytest.approx(1000, rel=0.026)
    assert live.latencies(NOW + 7200)["60m"]["e2e_ms"].p50 is None


@given(st.lists(st.floats(0.01, 1e7), min_size=1, max_size=200))
def test_percentiles_are_near_the_true_ones(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    found = histogram.percentiles()
    ordered = sorted(values)
    for percent, shown in ((50, found.p50), (95, found.p95), (99, found.p99)):
        true = ordered[math.ceil(percent / 100 * len(values)) - 1]
        assert shown == pytest.approx(true, rel=0.026)


def test_usage_by_user_and_status() -> None:
    live = numbers()
    live.ended(call(NOW - 7200, user="old"))
    for i in (2, 1, 0):
        live.ended(call(NOW - i * 100, user="ada"))
    live.ended(call(NOW - 50, user="grace", status=429))
    live.ended(call(NOW - 50, user=None, status=401))
    usage = live.usage(NOW)
    ada = usage.users["ada"]
    assert (ada.requests, ada.failed, ada.tokens_in, ada.tokens_out) == (3, 0, 90, 30)
    assert ada.last_time == NOW
    assert usage.users["grace"].failed == usage.users[NOBODY].failed == 1
    assert usage.statuses == {200: 3, 429: 1, 401: 1}


def test_memory_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_numbers, "MAX_USERS", 50)
    live = numbers()

    def busy_hour(start: float) -> None:
        for i in range(0, 3600, 3):
            live.began(call(start))
            live.ended(call(start + i, user=f"user-{i % 700}", ttft_ms=1.0 + i))
            live.sample(start + i, {"a": EngineStats(steps=i)})

    tracemalloc.start()
    busy_hour(NOW)
    after_one, _ = tracemalloc.get_traced_memory()
    for hour in (1, 2):
        busy_hour(NOW + hour * 3600)
    after_three, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after_three < after_one * 1.2
    assert len(live.samples()) == HISTORY_S
    now = NOW + 3 * 3600
    users = live.usage(now).users
    assert sum(user.requests for user in users.values()) == 1200
    assert OTHERS not in users  # 20 users a minute have their own row

    for i in range(60):
        live.ended(call(now + 1, user=f"crowd-{i}"))
    assert live.usage(now + 1).users[OTHERS].requests == 10
