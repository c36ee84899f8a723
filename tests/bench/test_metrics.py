"""Latency and throughput figures, checked against their definitions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropless.bench.metrics import (
    Distribution,
    RequestRecord,
    ServiceLevel,
    percentile,
    summarize,
)
from dropless.errors import SettingsError

seconds = st.floats(0, 1e4, allow_nan=False)


@st.composite
def records(draw: st.DrawFn) -> RequestRecord:
    start = draw(seconds)
    gaps = draw(st.lists(st.floats(0, 10), max_size=8))
    arrivals, now = [], start
    for gap in gaps:
        now += gap
        arrivals.append(now)
    return RequestRecord(
        index=0,
        start_s=start,
        end_s=now + draw(st.floats(0, 1)),
        arrivals=arrivals,
        input_tokens=draw(st.integers(1, 1000)),
        output_tokens=len(arrivals) + draw(st.integers(0, 3)) if arrivals else 0,
        error=draw(st.sampled_from([None, None, None, "503: overloaded"])),
    )


runs = st.lists(records(), min_size=1, max_size=20)
levels = st.builds(
    ServiceLevel, *[st.none() | st.floats(0.1, 20_000, allow_nan=False) for _ in range(3)]
)


def test_figures_of_a_known_run() -> None:
    first = RequestRecord(0, 0.0, 1.0, [0.2, 0.6, 1.0], input_tokens=10, output_tokens=3)
    second = RequestRecord(1, 1.0, 2.0, [1.5, 2.0], input_tokens=20, output_tokens=2)
    failed = RequestRecord(2, 1.0, 1.001, [1.0001], 5, 1, error="500: broke")
    summary = summarize([first, second, failed], ServiceLevel(ttft_ms=300))

    assert first.ttft_s == pytest.approx(0.2)
    assert first.tpot_s == pytest.approx((1.0 - 0.2) / 2)
    assert (summary.completed, summary.failed, summary.errors) == (2, 1, {"500: broke": 1})
    assert summary.duration_s == 2.0
    assert summary.output_throughput == pytest.approx(5 / 2)
    assert summary.input_throughput == pytest.approx(30 / 2)
    assert summary.ttft is not None
    assert summary.ttft.count == 2  # the failed one, though fast, is no latency
    assert summary.ttft.mean == pytest.approx(350)
    assert summary.goodput == pytest.approx(1 / 2)
    assert summary.attainment == pytest.approx(1 / 3)


def test_one_token_has_no_tpot_and_meets_any() -> None:
    record = RequestRecord(0, 0.0, 0.1, [0.1], 4, 1)
    assert record.tpot_s is None
    assert ServiceLevel(tpot_ms=0.001).met_by(record)
    assert not ServiceLevel(ttft_ms=50).met_by(record)


def test_no_token_misses_a_first_token_limit() -> None:
    assert not ServiceLevel(ttft_ms=1e9).met_by(RequestRecord(0, 0.0, 0.1, [], 4, 0))


@given(runs, levels)
def test_goodput_never_exceeds_throughput(run: list[RequestRecord], level: ServiceLevel) -> None:
    summary = summarize(run, level)
    assert summary.goodput is not None
    assert summary.attainment is not None
    assert 0 <= summary.goodput <= summary.request_throughput
    assert 0 <= summary.attainment <= summary.completed / summary.requests
    assert summary.completed + summary.failed == len(run)
    assert sum(summary.errors.values()) == summary.failed


@given(runs, levels, st.floats(1, 10))
def test_a_looser_service_level_is_met_at_least_as_often(
    run: list[RequestRecord], level: ServiceLevel, factor: float
) -> None:
    looser = ServiceLevel(
        *[
            None if limit is None else limit * factor
            for limit in (level.ttft_ms, level.tpot_ms, level.e2e_ms)
        ]
    )
    strict, loose = summarize(run, level).goodput, summarize(run, looser).goodput
    assert strict is not None
    assert loose is not None
    assert strict <= loose


@given(st.lists(seconds, min_size=1))
def test_percentiles_rise_and_stay_within_the_values(values: list[float]) -> None:
    found = Distribution.of_seconds(values)
    assert found is not None
    assert found.p50 <= found.p90 <= found.p95 <= found.p99 <= found.max
    assert min(values) * 1000 <= found.p50
    assert found.max == max(values) * 1000


@given(st.lists(seconds, min_size=1, max_size=50), st.floats(0, 100))
def test_percentile_splits_the_values_at_its_level(values: list[float], level: float) -> None:
    ordered = sorted(values)
    value = percentile(ordered, level)
    below = sum(v <= value + 1e-6 for v in ordered)
    assert below >= (len(ordered) - 1) * level / 100


def test_percentile_interpolates() -> None:
    assert percentile([10.0, 20.0], 50) == 15.0
    assert percentile([1.0, 2.0, 3.0, 4.0, 5.0], 90) == pytest.approx(4.6)


def test_a_run_of_failures_has_no_latency() -> None:
    summary = summarize([RequestRecord(0, 0.0, 0.0, error="refused")], ServiceLevel(ttft_ms=1))
    assert summary.ttft is None
    assert summary.output_throughput == 0
    assert summary.goodput == 0


def test_service_level_by_name() -> None:
    assert ServiceLevel.parse("ttft=450,tpot=40") == ServiceLevel(ttft_ms=450, tpot_ms=40)
    assert ServiceLevel.parse("e2e=2000") == ServiceLevel(e2e_ms=2000)


@pytest.mark.parametrize("text", ["", "ttft", "ttft=", "ttft=fast", "ttft=-1", "ttft=nan", "p=3"])
def test_a_wrong_service_level_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="ttft=450,tpot=40"):
        ServiceLevel.parse(text)
