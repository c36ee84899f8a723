"""Requests that are being served, and whether more are taken."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.types import ASGIApp, Receive, Scope, Send

from dropless.errors import EngineDeadError
from dropless.server.errors import is_platform_path, to_http_error

_DRAINING = EngineDeadError(
    "this server stops and takes no more requests; try another one, or this one when it is back",
    retry_after_s=1.0,
)
_HEALTH = "/health"  # tells load balancers that the server drains, so it is answered until the end


class Traffic:
    """Counts requests. After `drain` has begun, new ones are refused."""

    def __init__(self) -> None:
        self.draining = False
        self.running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        self.running += 1
        self._idle.clear()

    def end(self) -> None:
        self.running -= 1
        if not self.running:
            self._idle.set()

    async def drain(self, grace_s: float) -> None:
        """Take no more, and wait until those that run have ended, at most so long."""
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._idle.wait()


class CountTraffic:
    """The middleware that keeps a `Traffic`: while it drains, new requests get 503 and their
    connection is closed, so that a client goes elsewhere."""

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self._app = app
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == _HEALTH:
            await self._app(scope, receive, send)
            return
        if self._traffic.draining:
            response = to_http_error(_DRAINING).response(is_platform_path(scope["path"]))
            response.headers["connection"] = "close"
            await response(scope, receive, send)
            return
        self._traffic.begin()
        try:
            await self._app(scope, receive, send)
        finally:
            self._traffic.end()
