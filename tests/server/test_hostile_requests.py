"""A few of each kind of hostile request; benchmarks/hostile_requests.py sends ten thousand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.hostile_cases import KINDS

from tests.server.server_process import ServerProcess
from tests.server.tiny_model import MODEL_ID

EACH = 15


def test_hostile_requests_get_no_5xx(server: ServerProcess, tmp_path: Path) -> None:
    before = "".join(server.errors).count("Traceback")
    options = ["--requests", str(EACH * len(KINDS)), "--slow", "0", "--seed", "7"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.hostile_requests"),
            *("--url", server.url, "--model", MODEL_ID, "--out", str(tmp_path / "out.json")),
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "".join(server.errors).count("Traceback") == before
