"""Run the server: load the model, answer, say what to try, stop when told to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator

import uvicorn
import uvloop

from dropless.engine.client import AsyncEngineClient
from dropless.engine.config import EngineConfig
from dropless.engine.messages import EngineReady
from dropless.server.app import create_app
from dropless.server.limits import HttpLimits
from dropless.server.listener import BACKLOG, cut_stalled_clients, raise_file_limit, url
from dropless.server.terminal import Terminal
from dropless.text.chat_template import load_chat_template
from dropless.text.tokenizer import load_tokenizer


def serve(
    config: EngineConfig,
    listener: socket.socket,
    *,
    limits: HttpLimits | None = None,
) -> None:
    """Serve one model on `listener` (see `dropless.server.listener.listen`) until SIGINT or
    SIGTERM. The first signal lets running requests finish for `limits.shutdown_grace_s`, the
    second stops at once. Belongs to the main thread.

    While the model loads, /health and all requests answer 503. When it serves, what to try is
    printed. Each request is logged with its id, status and time.

    Raises:
        DroplessError: the model, its tokenizer or its template does not load.
    """
    limits = limits or HttpLimits()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    raise_file_limit()
    cut_stalled_clients(listener, limits.stalled_client_s)
    tokenizer = load_tokenizer(config.tokenizer_path or config.model_path)
    template = load_chat_template(config.model_path, tokenizer)
    engine = AsyncEngineClient(config)
    model_id = config.model_id or config.model_path.name
    app = create_app(engine, tokenizer, template, model_id, limits)
    server = _Server(
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
    terminal = Terminal(url(listener), model_id, chats=template.source is not None)
    running = _Running(engine, server, listener, terminal)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(running.run())


class _Server(uvicorn.Server):
    """Leaves the signals to `_Running`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Running:
    """The HTTP server and the engine together, from start to stop."""

    def __init__(
        self,
        engine: AsyncEngineClient,
        server: uvicorn.Server,
        listener: socket.socket,
        terminal: Terminal,
    ) -> None:
        self._engine = engine
        self._server = server
        self._listener = listener
        self._terminal = terminal
        self._loading: asyncio.Task[EngineReady] | None = None
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
        # Else the process ends here and now; the engine process dies with it.

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
            ready = await self._load()
            if ready is not None:
                self._terminal.ready(ready)
                await serving
        finally:
            self._server.should_exit = True
            await serving
            await self._engine.stop()

    async def _load(self) -> EngineReady | None:
        """None if a signal came first."""
        with self._terminal.loading() as show:
            self._loading = asyncio.create_task(self._engine.start(show))
            await asyncio.wait((self._loading,))
        return None if self._loading.cancelled() else self._loading.result()
