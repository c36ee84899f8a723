"""Collectives between real processes, and what happens when one is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from dropless.errors import EngineError, SettingsError
from dropless.parallel import group as group_module
from dropless.parallel.group import SOLO, Group, PeersLostError

from . import collective_checks as checks
from .team import CPU, Check, Team


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "check",
    [
        checks.check_sums,
        checks.check_sums_are_the_same_bits_on_every_rank,
        checks.check_sums_in_order,
        checks.check_sums_with_a_norm,
        checks.check_gathering,
        checks.check_broadcast,
    ],
)
def test_every_rank_finds(check: Check, size: int, teams: dict[int, Team]) -> None:
    teams[size].run(check)


def test_a_killed_rank_is_named_though_another_reports_the_loss_too() -> None:
    with Team(3) as team:
        victim = team.ranks.pids[2]
        threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
        started = time.monotonic()
        with pytest.raises(PeersLostError, match=r"rank 0 of 3 lost another rank"):
            team.run(checks.sums_without_end)
        cause = team.ranks.cause()
        assert time.monotonic() - started < 5.0
        assert type(cause) is EngineError
        assert f"rank 2 (process {victim}) was killed by SIGKILL" in str(cause)


def test_an_exception_on_one_rank_ends_a_sum_on_the_other(teams: dict[int, Team]) -> None:
    with Team(2) as team:
        with pytest.raises(PeersLostError):
            team.run(checks.rank_1_fails)
        cause = team.ranks.cause()
        assert "rank 1 failed:\nTraceback" in str(cause)
        assert "ZeroDivisionError: rank 1 has a bug" in str(cause)
        teams[2].run(checks.check_sums)  # other groups of this process do not mind


def test_a_stuck_rank_is_given_up_in_time() -> None:
    with Team(2, timeout_s=0.5) as team:
        started = time.monotonic()
        with pytest.raises(PeersLostError):
            team.run(checks.rank_1_is_stuck)
        assert 0.4 < time.monotonic() - started < checks.STUCK_S


def test_ranks_that_do_not_come_are_not_waited_for_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_module, "_JOIN_TIMEOUT_S", 0.5)
    with pytest.raises(PeersLostError, match="rank 0 of 2 did not meet the other ranks"):
        Group.join(0, 2, CPU, tmp_path)


def test_alone_nothing_happens(tmp_path: Path) -> None:
    x = torch.randn(3, 2)
    for group in (SOLO, Group.join(0, 1, CPU, tmp_path)):
        assert (group.rank, group.size) == (0, 1)
        assert group.all_reduce(x) is x
        assert group.all_reduce_in_order(x) is x
        assert group.all_gather(x, 0) is x
        assert group.broadcast(x) is x
        assert group.slice_of(7, "heads") == (0, 7)
        group.check()
        group.abort()
    assert list(tmp_path.iterdir()) == []


def test_slices_cover_everything_once() -> None:
    slices = [Group(rank, 4).slice_of(12, "heads") for rank in range(4)]
    assert slices == [(0, 3), (3, 3), (6, 3), (9, 3)]


def test_an_uneven_slice_names_what_and_what_would_fit() -> None:
    with pytest.raises(SettingsError) as caught:
        Group(1, 6).slice_of(8, "key and value heads")
    for part in ("key and value heads", "8", "6 ranks", "tensor_parallel_size to 1 or 2 or 4"):
        assert part in str(caught.value)
