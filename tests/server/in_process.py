"""A server on a thread of the test's own process, for tests that look inside; its engines are
processes as ever, and clients reach it over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import uvicorn

from dropless.server.app import create_app
from dropless.server.call import Call
from dropless.server.configuration.settings import Configuration
from dropless.server.endpoints.manager import EndpointManager
from dropless.server.endpoints.registry import EndpointRegistry
from dropless.server.gateway import Gateway
from dropless.server.identity.gatekeeper import Gatekeeper
from dropless.server.identity.settings import IdentitySettings
from dropless.server.limits import HttpLimits
from dropless.server.listener import listen, url
from dropless.server.traffic import Traffic

T = TypeVar("T")


class Recorder:
    """Keeps every call that ended."""

    def __init__(self) -> None:
        self.begun: list[Call] = []
        self.calls: list[Call] = []
        self._more = threading.Condition()

    def began(self, call: Call) -> None:
        self.begun.append(call)

    def ended(self, call: Call) -> None:
        with self._more:
            self.calls.append(call)
            self._more.notify_all()

    def wait_for(self, count: int) -> list[Call]:
        """The calls, when so many have ended."""
        with self._more:
            assert self._more.wait_for(lambda: len(self.calls) >= count, timeout=20), self.begun
            return list(self.calls)


class InProcess:
    """The server's parts, with `run` for what belongs to its event loop."""

    def __init__(
        self, url: str, loop: asyncio.AbstractEventLoop, gateway: Gateway, recorder: Recorder
    ) -> None:
        self.url = url
        self.gateway = gateway
        self.recorder = recorder
        self._loop = loop

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 60.0) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)


@contextlib.contextmanager
def serving(endpoints: list[dict[str, Any]], **gateway: Any) -> Iterator[InProcess]:
    """`gateway` are further arguments of Gateway."""
    configuration = Configuration.model_validate({"endpoints": endpoints}, strict=False)
    listener = listen("127.0.0.1", 0)
    recorder = Recorder()
    started: list[InProcess] = []
    ready = threading.Event()

    async def run() -> None:
        registry = EndpointRegistry(configuration.endpoints)
        # Nobody makes a store there: the server is open.
        gatekeeper = Gatekeeper(IdentitySettings(), Path("/nonexistent"), "127.0.0.1")
        made = Gateway(
            registry,
            HttpLimits(),
            observers=[recorder],
            owner_of=gatekeeper.secret.cache_owner,
            **gateway,
        )
        manager = EndpointManager(registry, configuration, None, None)
        app = create_app(made, manager, Traffic(), gatekeeper, configuration.server)
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, ws="none"))
        stop.append(server)
        try:
            await registry.start()
            started.append(InProcess(url(listener), asyncio.get_running_loop(), made, recorder))
            ready.set()
            await server.serve(sockets=[listener])
        finally:
            ready.set()
            await registry.stop()

    stop: list[uvicorn.Server] = []
    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        ready.wait()
        assert started
        yield started[0]
    finally:
        for server in stop:
            server.should_exit = True
        thread.join()
        listener.close()
