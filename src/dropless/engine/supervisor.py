"""One life of the engine process, as its parent sees it: start, messages, death, clean-up."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import zmq

from dropless import logs
from dropless.engine import transport
from dropless.engine.config import EngineConfig
from dropless.engine.messages import FromEngine, Ping, Shutdown, ToEngine
from dropless.engine.private_folder import PrivateFolder
from dropless.errors import DroplessError, EngineDeadError, SettingsError

logger = logging.getLogger(__name__)

# The engine's IO thread answers pings even while the model loads. An engine that leaves this many
# unanswered is wedged and is killed. Counted, not timed: a suspended parent must not blame it.
MAX_UNANSWERED_PINGS = 60
OPENMP_SPINS = 20_000  # some 50 us: longer than the pause between two products
SHUTDOWN_S = 5.0  # for the step in progress to end
TERMINATE_S = 2.0
RECEIVE_BATCH = 64  # messages handled before other tasks of the event loop get their turn


class EngineProcess:
    """Starts the engine process on construction; needs a running event loop.

    `on_message` gets everything it sends. `died` is set to the error that it ended with, after the
    process is reaped and its folder removed; nobody may await it directly, for that could cancel
    it.
    """

    def __init__(
        self, config: EngineConfig, builder: str, on_message: Callable[[FromEngine], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._unanswered = 0
        self._verdict: DroplessError | None = None  # why we killed it
        self._closed = False
        self.died: asyncio.Future[DroplessError] = self._loop.create_future()
        self._private = PrivateFolder()
        self._folder = folder = self._private.path
        if len(str(folder / transport.SOCKET_FILE)) > zmq.IPC_PATH_MAX_LEN:
            self._private.close()
            raise SettingsError(
                f"the temporary folder {folder.parent} has too long a path for a Unix socket; "
                "set TMPDIR to a shorter one"
            )
        transport.write_config(folder, config)
        self._process = spawn(folder, builder)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = transport.connect_client(self._context, folder)
        self._loop.add_reader(self._pidfd, self._exited)
        self._socket_fd = int(self._socket.get(zmq.FD))
        self._loop.add_reader(self._socket_fd, self._receive)
        self._ping()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Queues a message; never blocks. To a dead engine it goes nowhere.

        Raises:
            InvalidRequestError: the message is larger than the engine accepts.
        """
        frame = transport.encode_to_engine(message)
        if not self._closed:
            self._socket.send(frame, zmq.NOBLOCK)
            # Sending can swallow the edge that the reader waits for.
            self._loop.call_soon(self._receive)

    async def stop(self, *, graceful: bool) -> None:
        """Ends the process and waits for it: asked, then terminated, then killed."""
        if graceful:
            self.send(Shutdown())
            if not await self._wait(SHUTDOWN_S):
                logger.warning("the engine did not stop within %.0f s; terminating", SHUTDOWN_S)
                os.kill(self.pid, signal.SIGTERM)
                await self._wait(TERMINATE_S)
        self._kill()
        await asyncio.wait({self.died})

    async def _wait(self, seconds: float) -> bool:
        await asyncio.wait({self.died}, timeout=seconds)
        return self.died.done()

    def _kill(self) -> None:
        """Kills the process and its workers. Does nothing once it is reaped."""
        if not self.died.done():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _ping(self) -> None:
        if self._closed:
            return
        if self._unanswered >= MAX_UNANSWERED_PINGS:
            self._verdict = EngineDeadError(
                f"the engine process left {self._unanswered} pings unanswered and was killed"
            )
            self._kill()
            return
        self._unanswered += 1
        self.send(Ping(nonce=0))
        self._loop.call_later(transport.PING_INTERVAL_S, self._ping)

    def _receive(self) -> None:
        """Reads until the socket is empty: its descriptor tells of the first message only."""
        for _ in range(RECEIVE_BATCH):
            if self._closed:
                return
            try:
                message = transport.decode_from_engine(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            self._unanswered = 0
            self._on_message(message)
        self._loop.call_soon(self._receive)

    def _exited(self) -> None:
        """Hears the last messages, then releases everything this process had."""
        self._receive()
        self._closed = True
        self._kill()  # workers that outlive their rank 0; its pid is still ours before wait()
        code = self._process.wait()
        failure = transport.read_failure(self._folder)
        self._loop.remove_reader(self._pidfd)
        self._loop.remove_reader(self._socket_fd)
        os.close(self._pidfd)
        self._context.destroy(linger=0)
        self._private.close()
        own_words = transport.to_error(failure) if failure is not None else None
        self.died.set_result(own_words or self._verdict or _death(code))


def spawn(folder: Path, builder: str) -> subprocess.Popen[bytes]:
    """Its own process group: Ctrl-C reaches the parent only, and one kill reaches all workers."""
    command = [sys.executable, "-P", "-m", "dropless.engine.process", str(folder)]
    options = ["--parent-pid", str(os.getpid()), "--builder", builder]
    options += ["--log-format", logs.current()]
    # OpenMP's threads spin while they wait, by default for as long as a whole step may take; on a
    # machine that others use too, that is time taken from the thread they wait for.
    environment = {"GOMP_SPINCOUNT": str(OPENMP_SPINS), **os.environ}
    return subprocess.Popen(
        [*command, *options], stdin=subprocess.DEVNULL, process_group=0, env=environment
    )


def _death(code: int) -> EngineDeadError:
    if code >= 0:
        return EngineDeadError(f"the engine process exited with status {code}")
    hint = " (the system does this when memory runs out)" if code == -signal.SIGKILL else ""
    name = signal.Signals(-code).name
    return EngineDeadError(f"the engine process was killed by {name}{hint}")
