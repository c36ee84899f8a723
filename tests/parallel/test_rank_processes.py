"""Ranks start, fail and stop together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from dropless.errors import EngineError, SettingsError
from dropless.parallel.rank_messages import STARTED
from dropless.parallel.rank_processes import RankProcesses

from . import faults

PARENT_THAT_IS_KILLED = """
import os, signal
from dropless.parallel.rank_messages import STARTED
from dropless.parallel.rank_processes import RankProcesses
from tests.parallel import faults

ranks = RankProcesses(3, faults.echo, ())
ranks.wait_for(STARTED)
print(*ranks.pids.values(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_gone(pids: list[int], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while alive := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, f"still running: {alive}"
        time.sleep(0.02)


def test_frames_reach_every_rank_and_closing_leaves_nothing() -> None:
    ranks = RankProcesses(3, faults.echo, ())
    ranks.wait_for(STARTED)
    for pid in ranks.pids.values():
        os.kill(pid, signal.SIGINT)  # what Ctrl-C in the terminal does
    assert ranks.folder.stat().st_mode & 0o077 == 0, "only this user may enter"
    ranks.remove_folder()
    assert not ranks.folder.exists()
    for stage in ("one", "two"):
        ranks.send(stage.encode())
        ranks.wait_for(stage)
    pids = list(ranks.pids.values())
    ranks.close()
    ranks.close()
    assert_gone(pids, within_s=0.0)
    with pytest.raises(EngineError, match="make a new engine"):
        ranks.check()


def test_an_error_of_the_tree_keeps_its_class_and_words() -> None:
    with closing(RankProcesses(2, faults.refuse, ())) as ranks:
        with pytest.raises(SettingsError) as caught:
            ranks.wait_for("never")
        assert str(caught.value) == faults.WORDS
    assert not ranks.folder.exists()


def test_any_other_error_comes_with_rank_and_traceback_and_ends_all() -> None:
    with closing(RankProcesses(3, faults.crash, ())) as ranks:
        with pytest.raises(EngineError) as caught:
            ranks.wait_for("never")
        for part in ("rank 2 failed", "in crash", "ValueError: rank 2 has a bug"):
            assert part in str(caught.value)
        assert_gone(list(ranks.pids.values()), within_s=2.0)


def test_a_rank_that_ends_without_a_word_is_named_with_its_status() -> None:
    calls: list[str] = []
    with closing(RankProcesses(2, faults.vanish, (3,))) as ranks:
        ranks.on_failure = lambda: calls.append("told")
        with pytest.raises(EngineError, match=r"rank 1 \(process \d+\) ended with status 3"):
            ranks.wait_for("never")
        with pytest.raises(EngineError, match="ended with status 3"):
            ranks.send(b"x" * 2**20)
    assert calls == ["told"]


def test_ranks_end_with_a_killed_parent(tmp_path: Path) -> None:
    parent = subprocess.run(
        [sys.executable, "-c", PARENT_THAT_IS_KILLED],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    pids = [int(pid) for pid in parent.stdout.split()]
    assert len(pids) == 2
    assert_gone(pids, within_s=3.0)
