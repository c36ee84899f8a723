"""Arrivals, lengths and traces."""

from __future__ import annotations

import itertools
import random
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropless.bench.workload import (
    Lengths,
    fixed_arrivals,
    make_workload,
    poisson_arrivals,
    synthetic_prompt,
    trace_workload,
)
from dropless.errors import SettingsError

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:05.9799600,110,270
"""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return path


@given(st.floats(0.1, 100), st.integers(0, 2**32))
def test_poisson_gaps_have_the_mean_and_spread_of_an_exponential(rate: float, seed: int) -> None:
    times = poisson_arrivals(4001, rate, random.Random(seed))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times[0] == 0
    assert min(gaps) >= 0
    assert statistics.fmean(gaps) == pytest.approx(1 / rate, rel=0.12)
    assert statistics.stdev(gaps) == pytest.approx(1 / rate, rel=0.25)


@given(st.integers(1, 200), st.floats(0.1, 100))
def test_fixed_arrivals_are_even(count: int, rate: float) -> None:
    times = fixed_arrivals(count, rate)
    assert len(times) == count
    assert times[-1] == pytest.approx((count - 1) / rate)


@given(st.integers(1, 500), st.integers(0, 500), st.integers(0, 2**32))
def test_uniform_lengths_stay_in_range(low: int, span: int, seed: int) -> None:
    drawn = Lengths.parse(f"{low}:{low + span}").draw(random.Random(seed), 50)
    assert all(low <= length <= low + span for length in drawn)


@given(st.integers(1, 2000), st.floats(0, 3), st.integers(0, 2**32))
def test_lognormal_lengths_are_positive_and_bounded(median: int, sigma: float, seed: int) -> None:
    drawn = Lengths.parse(f"lognormal:{median}:{sigma}").draw(random.Random(seed), 50)
    assert all(1 <= length <= 16 * median for length in drawn)


def test_lognormal_lengths_have_their_median() -> None:
    drawn = Lengths.parse("lognormal:400:0.8").draw(random.Random(1), 5001)
    assert statistics.median(drawn) == pytest.approx(400, rel=0.05)


@pytest.mark.parametrize(
    "text", ["", "x", "0", "-4", "8:4", "lognormal:4", "normal:4:1", "4:1e9:2"]
)
def test_a_wrong_length_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="write 400"):
        Lengths.parse(text)


def test_prompts_have_their_length_and_differ() -> None:
    rng = random.Random(0)
    words = synthetic_prompt("words", 400, rng)
    assert isinstance(words, str)
    assert len(words.split()) == 400
    first, second = (synthetic_prompt("ids", 400, rng) for _ in range(2))
    assert len(first) == len(second) == 400
    assert first[:16] != second[:16]


def test_a_workload_repeats_with_its_seed() -> None:
    def made(seed: int) -> object:
        return make_workload(
            requests=20,
            arrival="poisson",
            rate=3,
            input_lengths=Lengths.parse("10:50"),
            output_lengths=Lengths.parse("lognormal:20:1"),
            seed=seed,
        )

    assert made(1) == made(1)
    assert made(1) != made(2)


def test_a_closed_loop_has_users_and_no_due_times() -> None:
    lengths = Lengths.parse("5")
    workload = make_workload(
        requests=9, arrival="closed", concurrency=3, input_lengths=lengths, output_lengths=lengths
    )
    assert workload.concurrency == 3
    assert {request.due_s for request in workload.requests} == {0.0}


def test_an_open_loop_needs_a_rate() -> None:
    lengths = Lengths.parse("5")
    with pytest.raises(SettingsError, match="rate"):
        make_workload(requests=9, arrival="poisson", input_lengths=lengths, output_lengths=lengths)


def test_a_trace_keeps_its_gaps_and_lengths(trace: Path) -> None:
    requests = trace_workload(trace, scale=2.0, prompts="ids").requests
    assert [request.due_s for request in requests] == pytest.approx([0, 0.026, 1.0])
    assert [len(request.prompt) for request in requests] == [4808, 3180, 110]
    assert [request.output_tokens for request in requests] == [10, 8, 270]


def test_a_clipped_trace_fits_the_context(trace: Path) -> None:
    requests = trace_workload(trace, clip=256, prompts="ids").requests
    assert [(len(r.prompt), r.output_tokens) for r in requests] == [(246, 10), (248, 8), (110, 128)]


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, trace: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(SettingsError, match="TIMESTAMP"):
        trace_workload(other)
    with pytest.raises(SettingsError, match="missing"):
        trace_workload(tmp_path / "missing.csv")
    trace.write_text(TRACE + "2023-11-16 18:17:06.0,many,1\n")
    with pytest.raises(SettingsError, match="row 4"):
        trace_workload(trace)
