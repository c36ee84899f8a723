"""What HTTP needs beside endpoints: request ids, bounded bodies, streams, clients that leave."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dropless.errors import EngineDeadError
from dropless.server.errors import is_platform_path, log_unexpected, to_http_error

logger = logging.getLogger("dropless.server")

T = TypeVar("T")

STOPPING = EngineDeadError("the server is stopping", retry_after_s=1.0)


class RequestIds:
    """The outermost middleware: gives every request an id, puts it on the response as
    `x-request-id`, and turns what nothing else caught into an error response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope["request_id"] = f"req-{uuid.uuid4().hex}"
        header = (b"x-request-id", request_id.encode())
        platform = is_platform_path(scope["path"])
        started = time.perf_counter()
        status = 0  # of the response, 0 until it starts

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append(header)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:  # the server stops, and the time to finish is over
            if not status:
                await to_http_error(STOPPING).response(platform)(scope, receive, send_with_id)
        except Exception as error:
            log_unexpected(error, request_id)
            if status:
                raise  # the connection is closed, so that the client sees the answer as cut
            await to_http_error(error).response(platform)(scope, receive, send_with_id)
        finally:
            _log(scope, status, (time.perf_counter() - started) * 1e3)


def _log(scope: Scope, status: int, duration_ms: float) -> None:
    """The line of a request that has ended."""
    request_id, method, path = scope["request_id"], scope["method"], _shown_path(scope)
    fields = {
        "request_id": request_id,
        "method": method,
        "path": path,
        "status": status or None,
        "duration_ms": round(duration_ms, 3),
    }
    if "call" in scope:
        fields |= scope["call"].summary()
    logger.info(
        "%s %s %s %s %.0f ms",
        *(request_id, method, path, status or "client left", duration_ms),
        extra={"fields": fields},
    )


def _shown_path(scope: Scope) -> str:
    """As it was sent: a line break in it, once decoded, would forge a line of the log."""
    raw: bytes = scope["raw_path"]
    return raw.decode("latin-1").encode("unicode_escape").decode("ascii")


async def read_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """The request's body.

    Raises:
        HTTPException: 413 if it is larger than `max_bytes`, known from its header or while it
            comes in; 408 if it is not complete after `timeout_s`.
        ClientDisconnect: the client left before it was complete.
    """
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        raise HTTPException(
            408, f"the body was not complete within {timeout_s:g} s; send it again"
        ) from None
    return bytes(body)


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(
        413, f"the body is larger than {max_bytes} bytes, the most that is accepted"
    )


async def until_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, and drop it at once if the client leaves.

    Raises:
        ClientDisconnect: the client left; the work was cancelled and has ended.
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Reply:
    """The response to one request: one body, or server-sent events. It starts with the first
    bytes sent, so that an error before them still gets its own status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._headers: dict[bytes, bytes] = {}
        self.started = False

    def add_headers(self, headers: Mapping[str, str]) -> None:
        """Before it starts."""
        self._headers |= {name.encode(): value.encode() for name, value in headers.items()}

    async def body(self, content: bytes, status: int = 200) -> None:
        """All of it, as JSON."""
        self.started = True
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            *self._headers.items(),
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await _send_body(self._send, content, more=False)

    async def events(self, chunk: bytes) -> None:
        """One or more whole events of a stream."""
        if not self.started:
            self.started = True
            headers = [*_EVENT_HEADERS, *self._headers.items()]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await _send_body(self._send, chunk)

    async def end(self) -> None:
        """The stream's end."""
        await _send_body(self._send, b"", more=False)


_EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


async def _send_body(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def event(value: Any) -> bytes:
    """One server-sent event whose data is `value` as JSON."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
