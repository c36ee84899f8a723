"""The process of a rank above 0: `python -m dropless.parallel.rank_main`, started by
`RankProcesses`. It runs the program it is given and ends when rank 0 does."""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from dropless.errors import DroplessError
from dropless.parallel.rank_messages import STARTED, Assignment, Failed, Place, Reached


def run(link: Connection[Any, Any]) -> int:
    """Runs the program that comes over `link`. Returns the exit status."""
    try:
        task: Assignment = link.recv()
        link.send(Reached(STARTED))
        task.program(Place(task.rank, task.size, task.folder, link), *task.arguments)
    except Exception as error:
        known = error if isinstance(error, DroplessError) else None
        with suppress(OSError):  # rank 0 is gone: nobody wants to know
            link.send(Failed(known, traceback.format_exc()))
        return 1
    return 0


def end_with(parent_pid: int) -> None:
    """Ends this process when its parent ends, however that happens and whatever this one does.

    The kernel's death signal would not do: it comes when the thread that started us ends.
    """
    try:
        parent = os.pidfd_open(parent_pid)
    except ProcessLookupError:
        os._exit(1)
    if os.getppid() != parent_pid:  # it died before we looked, and its number was given away
        os._exit(1)

    def watch() -> None:
        select.select([parent], [], [])
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides what Ctrl-C means
    faulthandler.enable()
    descriptor, parent_pid = map(int, sys.argv[1:])
    end_with(parent_pid)
    status = run(Connection(descriptor))
    os._exit(status)  # nothing is left to save, and tearing down a broken group can hang


if __name__ == "__main__":
    main()
