"""Shared by all tests."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import PurePath
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

# Several workers share the machine: threads of one that spin take the cores from the others. Read
# by PyTorch when it is imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A hundred processes are started here, and what one has compiled the next ones need not.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them every
# command that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about the machine than about the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Folders whose files share processes that take seconds to start.
_SHARING = {"parallel", "playground", "telemetry"}


class _Scheduling(LoadFileScheduling):
    """One worker gets all tests of a file, or of a folder that shares."""

    def _split_scope(self, nodeid: str) -> str:
        file = PurePath(nodeid.partition("::")[0])
        return str(file.parent if file.parent.name in _SHARING else file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return _Scheduling(config, log)
