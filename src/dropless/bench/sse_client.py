"""The thinnest HTTP client that can follow a stream of events: it shares the machine's cores
with the server it measures."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from urllib.parse import urlsplit

from dropless.errors import SettingsError

MAX_HEAD_BYTES = 64 * 1024


class HttpError(Exception):
    """The server answered with another status than 200, or not in HTTP. The message says how."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to send: parsed once, used for every request."""

    host: str
    port: int
    path: str  # without a trailing slash
    tls: ssl.SSLContext | None
    authorization: str | None

    @classmethod
    def parse(cls, url: str, api_key: str | None = None) -> Endpoint:
        """An http or https address; user:password in it becomes basic authentication.

        Raises:
            SettingsError: it is no such address.
        """
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(f"{url!r} is no address; write for example http://127.0.0.1:8000")
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        authorization = f"Bearer {api_key}" if api_key else None
        if authorization is None and parts.username:
            pair = f"{parts.username}:{parts.password or ''}".encode()
            authorization = f"Basic {base64.b64encode(pair).decode()}"
        port = parts.port or (443 if tls else 80)
        return cls(parts.hostname, port, parts.path.rstrip("/"), tls, authorization)

    def head(self, path: str, body_bytes: int) -> bytes:
        lines = [
            f"POST {self.path}{path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Content-Type: application/json",
            "Accept: text/event-stream",
            f"Content-Length: {body_bytes}",
            "Connection: close",
        ]
        if self.authorization:
            lines.append(f"Authorization: {self.authorization}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def post_events(endpoint: Endpoint, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
    """Post a JSON body, yield the data of each server-sent event as it arrives.

    Raises:
        HttpError: the status is not 200 (its message holds the body's beginning), or the
            stream is cut short.
        OSError: no connection.
    """
    reader, writer = await asyncio.open_connection(
        endpoint.host, endpoint.port, ssl=endpoint.tls, limit=MAX_HEAD_BYTES
    )
    try:
        writer.write(endpoint.head(path, len(body)) + body)
        status, headers = await _read_head(reader)
        async with aclosing(_content(reader, headers)) as content:
            if status != 200:
                beginning = b"".join([piece async for piece in content])[:2000]
                raise HttpError(f"{status}: {beginning.decode(errors='replace').strip()}")
            rest = b""
            async for piece in content:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    if line.startswith(b"data:"):
                        yield line[5:].strip()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
        raise HttpError(f"the answer is cut short or no HTTP: {error}") from error
    finally:
        writer.close()


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip().lower()
    return int(first.split(" ", 2)[1]), headers


async def _content(
    reader: asyncio.StreamReader, headers: dict[str, str]
) -> AsyncGenerator[bytes, None]:
    """The body piece by piece: chunked, of a known length, or up to the end of the connection."""
    if headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
        return
    if "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
        return
    while piece := await reader.read(MAX_HEAD_BYTES):
        yield piece
