"""Steps of known times: measured, they come out as they are; replayed, they give the closed loop
that follows from them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from dropless.bench.study import steps
from dropless.bench.study.closed_loop import ClosedLoop, OutOfTimeError
from dropless.bench.study.data import Point
from dropless.bench.study.models import Room, rows_that_fit
from dropless.bench.study.replay import StepTimes, replay, replayed_loop, replaying_engine
from dropless.bench.study.settings import FULL, Options
from dropless.bench.study.steps import measure_steps

ROOM = Room(
    num_blocks=64 * 2768 // 16,
    block_size=16,
    max_running_requests=64,
    max_model_len=2768,
    step_token_budget=4096,
)
USERS = (1, 2, 8, 32, 63)


def true_ms(decodes: int, prompt_tokens: int) -> float:
    return 10.0 + 0.5 * decodes + 0.06 * prompt_tokens


def point(kind: str, decodes: int, prompt_tokens: int) -> Point:
    ms = true_ms(decodes, prompt_tokens)
    return {"kind": kind, "decodes": decodes, "prompt_tokens": prompt_tokens, "ms": ms}


def linear_times() -> StepTimes:
    """`true_ms` everywhere, from a few points of it."""
    return StepTimes(
        [
            *(point("decode", rows, 0) for rows in (1, 64)),
            *(point("short", rows, 256) for rows in (0, 64)),
            *(point("prompt", rows, 2000) for rows in (0, 64)),
            *(point("full", rows, 4096 - rows) for rows in (0, 64)),
        ]
    )


def options(*, deadline: float = float("inf"), users: tuple[int, ...] = USERS) -> Options:
    return Options(
        scale=FULL, on="slice", ranks=8, models=(), users=users, data=Path(), deadline=deadline
    )


@pytest.mark.parametrize("decodes", [0, 1, 17, 64, 90])
@pytest.mark.parametrize("prompt_tokens", [0, 1, 256, 1000, 2000, 4000])
def test_times_between_and_beyond_the_measured_are_on_lines(
    decodes: int, prompt_tokens: int
) -> None:
    found = 1e3 * linear_times().seconds(decodes, prompt_tokens)
    if decodes == 0 and prompt_tokens < 256:
        expected = true_ms(1, 0) if prompt_tokens == 0 else true_ms(0, 256)
    else:
        expected = true_ms(decodes, prompt_tokens)
    assert found == pytest.approx(expected)


def test_measuring_finds_the_times_of_steps_that_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, clock = replaying_engine(linear_times(), ROOM)
    monkeypatch.setattr(steps.time, "perf_counter", clock)
    points = list(measure_steps(engine, max(USERS), 1, options()))
    for found in points:
        assert found["ms"] == pytest.approx(true_ms(found["decodes"], found["prompt_tokens"]))
        if found["decodes"]:
            assert 2000 < found["context"] <= 2000 + 256
    kinds = {kind: [p["decodes"] for p in points if p["kind"] == kind] for kind in steps.KINDS}
    assert kinds["decode"] == list(USERS)
    assert kinds["short"] == kinds["prompt"] == [0, *USERS]
    assert len(kinds["full"]) >= 3
    assert not engine.has_work()
    engine.check_integrity()


@pytest.mark.parametrize("num_blocks", [300, 1000, 5500, 9000, 27_000])
def test_rows_that_just_fit_into_the_cache_are_measured(
    num_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_that_fit(num_blocks, FULL)
    room = replace(ROOM, num_blocks=num_blocks, max_running_requests=rows + 1)
    engine, clock = replaying_engine(linear_times(), room)
    monkeypatch.setattr(steps.time, "perf_counter", clock)
    points = list(measure_steps(engine, rows, 1, options(users=FULL.users)))
    decodes = {found["decodes"] for found in points if found["kind"] == "prompt"}
    assert max(decodes) == min(200, rows)
    for found in points:
        assert found["ms"] == pytest.approx(true_ms(found["decodes"], found["prompt_tokens"]))
    assert engine.stats().preemptions == 0


def test_measuring_stops_when_time_is_up() -> None:
    engine, _ = replaying_engine(linear_times(), ROOM)
    late = options(deadline=time.monotonic() - 1.0)
    points = list(measure_steps(engine, 63, 1, late))
    assert {found["decodes"] for found in points} == {0}


def test_fewer_rows_than_users_are_measured() -> None:
    assert steps.row_counts((1, 2, 4, 200), 40) == [1, 2, 4, 40]
    assert steps.row_counts((1, 2), 40) == [1, 2]


def test_one_user_by_hand() -> None:
    loop = replayed_loop(
        linear_times(), ROOM, lambda _: 0.001, input_tokens=2000, output_tokens=256
    )
    [window] = replay(loop, [1], 1.0)
    ttft, tpot = true_ms(0, 2000) + 1, true_ms(1, 0) + 1
    assert window.ttft.mean == pytest.approx(ttft)
    assert window.tpot.mean == pytest.approx(tpot)
    cycle_s = (ttft + 255 * tpot) / 1e3
    assert window.output_tokens_per_s == pytest.approx(256 / cycle_s)
    assert window.total_tokens_per_s == pytest.approx(2256 / cycle_s)


def test_users_share_steps_and_wait_for_each_others_prompts() -> None:
    """Over a whole answer, each user has one prompt of his own computed and one of each other."""
    loop = replayed_loop(linear_times(), ROOM, lambda _: 0.0, input_tokens=2000, output_tokens=256)
    for window in replay(loop, [4, 16], 1.0):
        prompts_ms = window.users * 0.06 * 2000
        cycle_s = (256 * (10 + 0.5 * window.users) + prompts_ms) / 1e3
        assert window.output_tokens_per_s == pytest.approx(window.users * 256 / cycle_s, rel=0.02)
        assert window.answers >= 2 * window.users


def test_users_beyond_the_rows_wait_and_add_nothing() -> None:
    room = replace(ROOM, max_running_requests=8)
    loop = replayed_loop(linear_times(), room, lambda _: 0.0, input_tokens=2000, output_tokens=256)
    eight, sixteen = replay(loop, [8, 16], 1.0)
    assert sixteen.output_tokens_per_s == pytest.approx(eight.output_tokens_per_s, rel=0.02)
    assert sixteen.tpot.mean == pytest.approx(eight.tpot.mean, rel=0.02)
    cycle_ms = 8 * 256 / eight.output_tokens_per_s * 1e3
    assert sixteen.ttft.mean - eight.ttft.mean == pytest.approx(cycle_ms, rel=0.05)


def test_a_closed_loop_that_runs_out_of_time_says_so() -> None:
    engine, clock = replaying_engine(linear_times(), ROOM)
    loop = ClosedLoop(
        engine,
        prompt=lambda: [0] * 100,
        output_tokens=16,
        clock=clock,
        is_late=lambda: clock() > 0.1,
    )
    loop.grow(1, 1.0)
    with pytest.raises(OutOfTimeError):
        loop.observe(10)
