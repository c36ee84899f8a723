"""A server on a thread of the test's own process, for tests that look inside; its engines are
processes as ever, and clients reach it over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import uvicorn

from dropless.server.app import create_app
from dropless.server.call import Call
from dropless.server.configuration.settings import Configuration
from dropless.server.gateway import Gateway
from dropless.server.guardrails.gate import Guardrails
from dropless.server.limits import HttpLimits
from dropless.server.listener import listen, url
from dropless.server.parts import Parts

T = TypeVar("T")


class Recorder:
    """Keeps every call that ended."""

    def __init__(self) -> None:
        self.begun: list[Call] = []
        self.calls: list[Call] = []
        self._more = threading.Condition()

    def began(self, call: Call) -> None:
        self.begun.append(call)

    def accepted(self, call: Call) -> None:
        pass

    def ended(self, call: Call) -> None:
        with self._more:
            self.calls.append(call)
            self._more.notify_all()

    def clear(self) -> None:
        """Forgets them, when all that began have ended."""
        with self._more:
            assert self._more.wait_for(lambda: len(self.calls) >= len(self.begun), timeout=20)
            self.calls.clear()
            self.begun.clear()

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
    folder = tempfile.TemporaryDirectory(prefix="dropless-test-")
    given = {"data": folder.name, "endpoints": endpoints}
    configuration = Configuration.model_validate(given, strict=False)
    listener = listen("127.0.0.1", 0)
    recorder = Recorder()
    started: list[InProcess] = []
    ready = threading.Event()

    async def run() -> None:
        parts = Parts(configuration, "127.0.0.1", None)
        made = parts.gateway = Gateway(
            parts.registry,
            HttpLimits(),
            observers=[recorder],
            guardrails=Guardrails(parts.registry.encoder),
            owner_of=parts.gatekeeper.secret.cache_owner,
            **gateway,
        )
        config = uvicorn.Config(create_app(parts), lifespan="off", log_config=None, ws="none")
        server = uvicorn.Server(config)
        stop.append(server)
        try:
            async with parts.open():
                await parts.registry.start()
                started.append(InProcess(url(listener), asyncio.get_running_loop(), made, recorder))
                ready.set()
                await server.serve(sockets=[listener])
        finally:
            ready.set()

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
        folder.cleanup()
