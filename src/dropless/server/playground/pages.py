"""The pages and the files that they load, from memory, with the headers that keep them to
themselves."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Receive, Scope, Send

_STATIC = Path(__file__).parent / "static"
_PAGES = {"index.html": "/", "dashboard.html": "/dashboard"}
_PREFIX = "/playground"
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

# Nothing from elsewhere, nothing inline, and no text ever becomes HTML (trusted types): what a
# model or a user wrote cannot run, load or send anything.
_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # a browser asks each time, and gets 304 until the file changes
}


class Pages:
    """An ASGI application of all files, read once: half a megabyte. `paths` are where they are;
    they hold nothing secret, and whoever is to log in has to see them."""

    def __init__(self) -> None:
        files = [path for path in _STATIC.rglob("*") if path.is_file()]
        self._contents = {_url(path): path.read_bytes() for path in files}
        self._headers = {_url(path): _headers(path) for path in files}
        self.paths = frozenset(self._contents)

    def routes(self) -> list[BaseRoute]:
        pages = [Route(path, self, methods=["GET"]) for path in _PAGES.values()]
        return [*pages, Mount(_PREFIX, self)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path not in self._contents:
            raise HTTPException(404)
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405)
        headers = self._headers[path]
        if Request(scope).headers.get("if-none-match") == headers["etag"]:
            response = Response(status_code=304, headers=headers)
        else:
            response = Response(self._contents[path], headers=headers)
        await response(scope, receive, send)


def _url(path: Path) -> str:
    relative = path.relative_to(_STATIC).as_posix()
    return _PAGES.get(relative, f"{_PREFIX}/{relative}")


def _headers(path: Path) -> dict[str, str]:
    kind = _TYPES.get(path.suffix, "text/plain")
    etag = hashlib.sha256(path.read_bytes()).hexdigest()[:24]
    return {"content-type": f"{kind}; charset=utf-8", "etag": f'"{etag}"', **_HEADERS}
