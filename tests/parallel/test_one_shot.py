"""Sums in one kernel between processes, in Triton's interpreter: arithmetic and protocol."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ARENA_BYTES = 16 * 2**20  # more than is needed


@pytest.mark.parametrize("size", [2, 3])
def test_interpreted_ranks_agree(size: int, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    for rank in range(size):
        with (tmp_path / f"arena-{rank}").open("wb") as file:
            file.truncate(ARENA_BYTES)
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.parallel.interpreted_rank",
                str(rank),
                str(size),
                str(tmp_path),
            ],
            env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        )
        for rank in range(size)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * size
