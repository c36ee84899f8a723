"""Run the server: load the models, answer, say what to try, stop when told to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator

import uvicorn
import uvloop
from fastapi import FastAPI

from dropless.server.app import create_app
from dropless.server.configuration.settings import Configuration
from dropless.server.endpoints.registry import EndpointRegistry
from dropless.server.gateway import Gateway
from dropless.server.limits import HttpLimits
from dropless.server.listener import BACKLOG, cut_stalled_clients, raise_file_limit, url
from dropless.server.terminal import Terminal


def serve(configuration: Configuration, listener: socket.socket) -> None:
    """Serve what the configuration describes on `listener` (see
    `dropless.server.listener.listen`) until SIGINT or SIGTERM. The first signal lets running
    requests finish for `shutdown_grace_s`, the second stops at once. Belongs to the main thread.

    While the models load, /health and calls answer 503. When they serve, what to try is printed.
    Each request is logged with its id, status and time.

    Raises:
        DroplessError: a model, its tokenizer or its template does not load.
    """
    limits = configuration.server.limits
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    raise_file_limit()
    cut_stalled_clients(listener, limits.stalled_client_s)
    registry = EndpointRegistry(configuration.endpoints)
    server = _server(create_app(Gateway(registry, limits)), limits)
    running = _Running(registry, server, listener, Terminal(url(listener)))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(running.run())


def _server(app: FastAPI, limits: HttpLimits) -> uvicorn.Server:
    return _Server(
        uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            backlog=BACKLOG,
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(limits.shutdown_grace_s)),
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
        self,
        registry: EndpointRegistry,
        server: uvicorn.Server,
        listener: socket.socket,
        terminal: Terminal,
    ) -> None:
        self._registry = registry
        self._server = server
        self._listener = listener
        self._terminal = terminal
        self._loading: asyncio.Task[None] | None = None
        self._told_to_stop = False
        self._stop_now = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)
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
        self._server.should_exit = True
        self._terminal.stopping()
        if self._loading is not None:
            self._loading.cancel()

    async def _serve_and_stop(self) -> None:
        serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        try:
            if await self._load():
                self._terminal.ready(self._registry.list())
                await serving
        finally:
            self._server.should_exit = True
            await serving
            await self._registry.stop()

    async def _load(self) -> bool:
        """False if a signal came first."""
        with self._terminal.loading() as show:
            self._loading = asyncio.create_task(self._registry.start(show))
            await asyncio.wait((self._loading,))
        if self._loading.cancelled():
            return False
        self._loading.result()
        return True
