"""The processes of ranks 1 and up, as rank 0 sees them: start, stages, failure, end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from dropless.errors import DroplessError, EngineError
from dropless.parallel.group import PeersLostError
from dropless.parallel.rank_messages import Assignment, Failed, Reached

_CAUSE_S = 3.0  # after one rank lost the others: how long the rank at fault may take to be heard
_END_S = 2.0  # for a process that closed its socket to be gone


@dataclass(slots=True)
class _Worker:
    rank: int
    process: subprocess.Popen[bytes]
    link: Connection[Any, Any]
    stages: set[str] = field(default_factory=set)


class RankProcesses:
    """Ranks start, fail and stop together: when one ends, the others are killed, `on_failure` is
    called, and everything that rank 0 asks for raises what went wrong.

    `folder` is private to these ranks, for `Group.join`. A thread hears all ranks at any time.
    """

    def __init__(self, size: int, program: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """Starts `size - 1` processes. Each imports `program`, calls `program(place, *arguments)`
        with a `rank_messages.Place`, and must go on until it is killed."""
        self._directory = tempfile.TemporaryDirectory(prefix="dropless-ranks-")  # mode 0700
        self.folder = Path(self._directory.name)
        self.on_failure: Callable[[], None] | None = None  # called by the listening thread
        self._failure: DroplessError | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._workers = [_start(rank) for rank in range(1, size)]
        self._listener = threading.Thread(target=self._listen, name="rank-listener", daemon=True)
        self._listener.start()
        for worker in self._workers:
            task = Assignment(program, worker.rank, size, self.folder, arguments)
            with suppress(OSError):  # it died at once; the listener says so
                worker.link.send(task)

    @property
    def pids(self) -> dict[int, int]:
        """The process of each rank above 0."""
        return {worker.rank: worker.process.pid for worker in self._workers}

    def wait_for(self, stage: str) -> None:
        """Sleeps until every process has reported this stage. Raises as `check`."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._failure or all(stage in worker.stages for worker in self._workers)
            )
        self.check()

    def send(self, frame: bytes) -> None:
        """Sends the frame to every process. Raises as `check`."""
        for worker in self._workers:
            try:
                worker.link.send_bytes(frame)
            except OSError as error:
                unheard = EngineError(f"rank {worker.rank} cannot be reached")
                raise self.cause() or unheard from error

    def check(self) -> None:
        """Raises:
        DroplessError: what a rank failed with.
        EngineError: a rank died, or raised something else; or the ranks are closed.
        """
        if self._closed:
            raise EngineError("the ranks of this engine are stopped; make a new engine")
        if self._failure is not None:
            raise self._failure

    def cause(self) -> DroplessError | None:
        """Why a collective failed: waits a few seconds for the rank at fault to be heard. None if
        no rank but this one failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure, timeout=_CAUSE_S + _END_S)
        return self._failure

    def remove_folder(self) -> None:
        """When all ranks have joined their group they need it no more, and a process that is
        killed leaves nothing behind."""
        self._directory.cleanup()

    def close(self) -> None:
        """Ends all processes and removes their folder. Does nothing the second time."""
        if self._closed:
            return
        self._closed = True
        self._kill()
        self._listener.join(_END_S)  # it disconnects the group, in which a GPU may be stuck
        for worker in self._workers:
            worker.process.wait()
            worker.link.close()
        self._directory.cleanup()

    def _kill(self) -> None:
        for worker in self._workers:
            worker.process.kill()  # there is nothing that it must save

    def _listen(self) -> None:
        failure = self._first_failure()
        with self._changed:
            self._failure = failure
            self._changed.notify_all()
        self._kill()
        if self.on_failure is not None:
            self.on_failure()

    def _first_failure(self) -> DroplessError:
        """Hears the ranks until one fails. One that only lost the others is not at fault, as long
        as another speaks or dies soon."""
        links = {worker.link: worker for worker in self._workers}
        lost: DroplessError | None = None
        deadline = 0.0
        while True:
            patience = None if lost is None else max(0.0, deadline - time.monotonic())
            ready = wait(list(links), patience)
            if lost is not None and not ready:
                return lost
            for link in ready:
                worker = links[link]  # type: ignore[index]
                message = _receive(worker)
                if isinstance(message, Reached):
                    self._note(worker, message.stage)
                    continue
                failure = _failure(worker, message)
                if not isinstance(failure, PeersLostError):
                    return failure
                del links[worker.link]
                if lost is None:
                    lost, deadline = failure, time.monotonic() + _CAUSE_S

    def _note(self, worker: _Worker, stage: str) -> None:
        with self._changed:
            worker.stages.add(stage)
            self._changed.notify_all()


def _start(rank: int) -> _Worker:
    """In the process group of this process, so that one signal ends them all."""
    ours, theirs = socket.socketpair()
    with theirs:
        descriptor = theirs.fileno()
        command = [sys.executable, "-P", "-m", "dropless.parallel.rank_main"]
        process = subprocess.Popen(
            [*command, str(descriptor), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            pass_fds=[descriptor],
        )
    return _Worker(rank, process, Connection(ours.detach()))


def _receive(worker: _Worker) -> Reached | Failed | None:
    """None when the process closed its end."""
    try:
        message: Reached | Failed = worker.link.recv()
    except (EOFError, OSError):
        return None
    return message


def _failure(worker: _Worker, message: Failed | None) -> DroplessError:
    if message is None:
        return EngineError(f"rank {worker.rank} {_death(worker.process)}")
    if message.error is not None:
        message.error.add_note(f"on rank {worker.rank}:\n{message.traceback}")
        return message.error
    return EngineError(f"rank {worker.rank} failed:\n{message.traceback}")


def _death(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(_END_S)
    except subprocess.TimeoutExpired:
        return f"(process {process.pid}) no longer listens"
    if code >= 0:
        return f"(process {process.pid}) ended with status {code}"
    hint = " (the system does this when memory runs out)" if code == -signal.SIGKILL else ""
    return f"(process {process.pid}) was killed by {signal.Signals(-code).name}{hint}"
