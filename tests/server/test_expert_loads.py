"""Counts of experts become a window of time and a total."""

from __future__ import annotations

from dropless.server.expert_loads import ExpertLoads


def test_the_window_is_the_last_minute_and_the_total_all() -> None:
    loads = ExpertLoads()
    assert loads.load() is None
    for second in range(301):
        loads.note(1000.0 + second, [[second, 2 * second], [3 * second, 0]])
    load = loads.load()
    assert load is not None
    assert load.total == [[300, 600], [900, 0]]
    assert load.window_s == 60
    assert load.window == [[60, 120], [180, 0]]


def test_an_engine_that_starts_again_begins_a_new_window() -> None:
    loads = ExpertLoads()
    loads.note(1000.0, [[50, 70]])
    loads.note(1010.0, [[60, 80]])
    loads.note(1011.0, [[3, 0]])
    load = loads.load()
    assert load is not None
    assert (load.window, load.total) == ([[0, 0]], [[3, 0]])
    loads.note(1021.0, [[4, 9]])
    load = loads.load()
    assert load is not None
    assert load.window == [[1, 9]]
