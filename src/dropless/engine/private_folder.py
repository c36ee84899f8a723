"""A temporary folder that outlives no process for long, also none that was killed."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_PREFIX = "dropless-"
_LOCK = ".lock"  # locked as long as the process lives that made the folder


class PrivateFolder:
    """Only this user can enter it (mode 0700). What killed processes left is removed on the way."""

    def __init__(self) -> None:
        _remove_abandoned()
        self._directory = tempfile.TemporaryDirectory(prefix=_PREFIX)
        self.path = Path(self._directory.name)
        fresh = self.path / f"{_LOCK}.new"
        self._lock = fresh.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        fresh.rename(self.path / _LOCK)  # nobody sees it before it is locked

    def close(self) -> None:
        self._directory.cleanup()
        self._lock.close()


def _remove_abandoned() -> None:
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError), lock.open() as file:  # of another user, or in use
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent)
