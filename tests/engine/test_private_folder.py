"""Folders go with those who made them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dropless.engine.private_folder import PrivateFolder

MAKES_ONE = """
import signal
from dropless.engine.private_folder import PrivateFolder
folder = PrivateFolder()
print(folder.path, flush=True)
signal.pause()
"""


def test_what_a_killed_process_left_is_removed_and_what_lives_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "dropless-of-something-else").mkdir()
    process = subprocess.Popen([sys.executable, "-c", MAKES_ONE], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    theirs = Path(process.stdout.readline().strip())
    assert theirs.stat().st_mode & 0o777 == 0o700
    mine = PrivateFolder()
    assert theirs.exists()
    process.kill()
    process.communicate()
    assert theirs.exists()
    next_one = PrivateFolder()
    assert not theirs.exists()
    assert mine.path.exists()
    mine.close()
    next_one.close()
    assert [path.name for path in tmp_path.iterdir()] == ["dropless-of-something-else"]
