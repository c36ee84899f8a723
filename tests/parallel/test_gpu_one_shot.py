"""Sums in one kernel between GPUs; with a single GPU two processes share it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from dropless.errors import EngineError
from dropless.parallel.group import PeersLostError

from . import one_shot_checks as checks
from .team import Check, Team

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

KILL_AFTER_S = 5.0  # the kernels are compiled by then
TIMEOUT_S = 3.0


@pytest.fixture(scope="module")
def gpu_team() -> Iterator[Team]:
    with Team(2, on_gpus=True) as team:
        yield team


@pytest.mark.parametrize(
    "check",
    [checks.check_rounds_without_a_pause, checks.check_graph, checks.check_norms],
)
def test_ranks_on_gpus_find(check: Check, gpu_team: Team) -> None:
    gpu_team.run(check)


def test_a_killed_rank_ends_the_wait_of_the_other() -> None:
    with Team(2, on_gpus=True) as team:
        team.ranks.on_failure = team.group.abort
        victim = team.ranks.pids[1]
        threading.Timer(KILL_AFTER_S, os.kill, (victim, signal.SIGKILL)).start()
        started = time.monotonic()
        with pytest.raises(PeersLostError, match="rank 0 of 2 lost another rank"):
            team.run(checks.sums_on_gpus_without_end)
        assert time.monotonic() - started < KILL_AFTER_S + 5.0
        cause = team.ranks.cause()
        assert type(cause) is EngineError
        assert f"rank 1 (process {victim}) was killed by SIGKILL" in str(cause)


def test_a_rank_that_stops_summing_is_given_up() -> None:
    with Team(2, timeout_s=TIMEOUT_S, on_gpus=True) as team:
        started = time.monotonic()
        with pytest.raises(PeersLostError):
            team.run(checks.rank_1_stops_summing)
        waited = time.monotonic() - started
        assert 0.9 * TIMEOUT_S < waited < checks.STOPPED_S / 2  # two clocks: the GPU's measured it
