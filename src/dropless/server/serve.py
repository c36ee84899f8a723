"""Run the server: load the models, answer, say what to try, stop when told to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from fastapi import FastAPI

from dropless import logs
from dropless.errors import DroplessError
from dropless.server.app import create_app
from dropless.server.bounded_http import bounded_http
from dropless.server.configuration.settings import Configuration
from dropless.server.identity.token import redacted
from dropless.server.limits import HttpLimits
from dropless.server.listener import BACKLOG, cut_stalled_clients, raise_file_limit, url
from dropless.server.parts import Parts
from dropless.server.terminal import Terminal

logger = logging.getLogger("dropless.server")


def serve(configuration: Configuration, listener: socket.socket, file: Path | None = None) -> None:
    """Serve what the configuration describes on `listener` (see
    `dropless.server.listener.listen`) until SIGINT or SIGTERM. The first signal refuses new
    requests and lets those that run finish for `shutdown_grace_s`, the second stops at once.
    Belongs to the main thread.

    `file` is where the configuration comes from: SIGHUP reads it again. Endpoints made through the
    API are then kept in the data folder.

    While the models load, /health and calls answer 503. When they serve, what to try is printed.
    Each request is logged with its id, status and time.

    Raises:
        DroplessError: everybody on the network would be let in, the store of users and tokens does
            not open, inference tables cannot be written, or a model, its tokenizer or its
            template does not load.
    """
    limits = configuration.server.limits
    logs.configure(configuration.telemetry.log_format, redact=redacted)
    raise_file_limit()
    cut_stalled_clients(listener, limits.stalled_client_s)
    parts = Parts(configuration, listener.getsockname()[0], file)
    server = _server(create_app(parts), limits)
    running = _Running(parts, server, listener, Terminal(url(listener)))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(running.run())


def _server(app: FastAPI, limits: HttpLimits) -> uvicorn.Server:
    return _Server(
        uvicorn.Config(
            app,
            http=bounded_http(limits),
            ws="none",
            lifespan="off",
            backlog=BACKLOG,
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,  # `Traffic.drain` has waited before
        )
    )


class _Server(uvicorn.Server):
    """Leaves the signals to `_Running`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Running:
    """The HTTP server and the engines together, from start to stop."""

    def __init__(
        self, parts: Parts, server: uvicorn.Server, listener: socket.socket, terminal: Terminal
    ) -> None:
        self._parts = parts
        self._server = server
        self._listener = listener
        self._terminal = terminal
        self._loading: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # of signals
        self._told_to_stop = False
        self._stop_now = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)
        if self._parts.manager.file is not None:
            loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload()))
        work = asyncio.create_task(self._serve_and_stop())
        now = asyncio.create_task(self._stop_now.wait())
        await asyncio.wait((work, now), return_when=asyncio.FIRST_COMPLETED)
        now.cancel()
        if work.done():
            work.result()
        # Else the process ends here and now; the engine processes die with it.

    def _signalled(self) -> None:
        if self._told_to_stop:
            self._server.force_exit = True
            self._stop_now.set()
            return
        self._told_to_stop = True
        self._terminal.stopping()
        if self._loading is not None:
            self._loading.cancel()
        self._spawn(self._drain())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self) -> None:
        await self._parts.traffic.drain(self._parts.settings.limits.shutdown_grace_s)
        self._server.should_exit = True

    async def _reload(self) -> None:
        manager = self._parts.manager
        try:
            logger.info("reloaded %s: %s", manager.file, await manager.reload())
        except DroplessError as error:
            logger.error("%s is not taken up, nothing has changed: %s", manager.file, error)

    async def _serve_and_stop(self) -> None:
        async with self._parts.open():
            serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
            try:
                if await self._load():
                    self._terminal.ready(
                        self._parts.registry.list(), needs_token=self._parts.gatekeeper.closed
                    )
                    await serving
            finally:
                self._server.should_exit = True
                await serving

    async def _load(self) -> bool:
        """False if a signal came first."""
        with self._terminal.loading() as show:
            self._loading = asyncio.create_task(self._parts.registry.start(show))
            await asyncio.wait((self._loading,))
        if self._loading.cancelled():
            return False
        self._loading.result()
        return True
