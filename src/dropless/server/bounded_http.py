"""uvicorn's HTTP protocol, with bounds on how large a request's head is and how slowly it comes.

Without them a client may send a head for ever: neither uvicorn nor its parser counts its bytes, and
their one timeout, for idle connections, ends with any byte that arrives.
"""

from __future__ import annotations

import asyncio
import sys
from typing import ClassVar

import httptools
import msgspec
from starlette.exceptions import HTTPException
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from dropless.server.errors import to_http_error
from dropless.server.limits import HttpLimits

# For the rest of a body that nobody wants any more: long enough that the client reads the answer,
# and does not see its connection reset while it writes.
_LINGER_S = 2.0
_OF_UPGRADES = (b"connection", b"upgrade", b"http2-settings")


def bounded_http(limits: HttpLimits) -> type[HttpToolsProtocol]:
    """The protocol class for uvicorn's `http` setting."""
    return type("BoundedHttp", (_BoundedHttp,), {"limits": limits})


class _HeadTooLargeError(Exception):
    """Stops the parser."""


class _BoundedHttp(HttpToolsProtocol):
    """A connection that is not answering a request has a deadline: by then the next request's
    headers are complete, or it is closed. When it ends, whoever is answering is told."""

    limits: ClassVar[HttpLimits]

    _running: RequestResponseCycle | None = None
    _deadline: asyncio.TimerHandle | None = None
    _receiving = False  # a request has begun, and its body is not complete
    _in_head = False  # nor are its headers
    _data = b""  # what came last
    _head_arrived = 0  # bytes that came since the head began: what the parser may hold of it
    _head_parsed = 0  # bytes of the request's target, headers and trailers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_keep_alive = self.limits.keep_alive_s  # type: ignore[assignment]
        self._close_after(self.limits.head_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and self._idle:
            self._close_after(self.limits.head_timeout_s)
        self._head_arrived = self._head_arrived + len(data) if self._in_head else 0
        self._data = data
        super().data_received(data)
        if self._in_head and self._head_arrived > self.limits.max_head_bytes:
            self._refuse(431)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """uvicorn itself knows the latest request only. With others behind it, the one that is
        being answered would not be told when the client leaves."""
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._receiving = self._in_head = True
        self._head_parsed = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._cancel_deadline()
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._receiving = False
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """What uvicorn calls when a client would rather speak another protocol, as Java's does with
        its first request. We go on in HTTP/1.1; but the parser has left the body out, so it gets
        the request again, without that wish."""
        method = self.parser.get_method()
        stopped = sys.exc_info()[1]
        if method == b"CONNECT" or not isinstance(stopped, httptools.HttpParserUpgrade):
            self._refuse(400)
            return
        head = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        head += [b"%b: %b" % pair for pair in self.headers if pair[0] not in _OF_UPGRADES]
        wishes = [value for name, value in self.headers if name == b"connection"]
        if b"close" in b",".join(wishes).lower().replace(b" ", b"").split(b","):
            head.append(b"connection: close")
        self.parser = httptools.HttpRequestParser(self)
        rest = self._data[stopped.args[0] :]
        try:
            self.parser.feed_data(b"\r\n".join(head) + b"\r\n\r\n" + rest)
        except httptools.HttpParserError:
            self.send_400_response("")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._receiving and self._idle:
            self._close_after(self.limits.head_timeout_s if self._in_head else _LINGER_S)

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for all that its parser does not take; `msg` says no more."""
        del msg
        too_large = self._head_parsed > self.limits.max_head_bytes
        self._refuse(431 if too_large else 400)

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _count(self, size: int) -> None:
        self._head_parsed += size
        if self._head_parsed > self.limits.max_head_bytes:
            raise _HeadTooLargeError

    def _close_after(self, seconds: float) -> None:
        self._cancel_deadline()
        self._deadline = self.loop.call_later(seconds, self._too_late)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        if self._in_head:
            self._refuse(408)
        else:
            self.transport.close()

    def _refuse(self, status: int) -> None:
        """Say why, unless an answer is on its way already, and close."""
        unanswered = self._idle or not (self.cycle.response_started or self.pipeline)
        if unanswered and not self.transport.is_closing():
            self.transport.write(_response(status, self._why(status)))
        self.transport.close()

    def _why(self, status: int) -> str:
        if status == 431:
            return (
                f"the request's line and headers are larger than {self.limits.max_head_bytes} "
                "bytes, the most that is accepted"
            )
        if status == 408:
            return (
                f"the headers were not complete within {self.limits.head_timeout_s:g} s; send the "
                "request again"
            )
        return "this is not HTTP/1.1 as its standard has it; the connection is closed"


def _response(status: int, why: str) -> bytes:
    body = msgspec.json.encode(to_http_error(HTTPException(status, why)).body())
    return b"".join(
        [
            STATUS_LINE[status],
            b"content-type: application/json\r\n",
            b"x-content-type-options: nosniff\r\n",
            b"content-length: %d\r\n" % len(body),
            b"connection: close\r\n\r\n",
            body,
        ]
    )
