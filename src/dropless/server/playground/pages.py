"""The pages as they are on disk, with the headers that keep them to themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).parent / "static"

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


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


def add_pages(app: FastAPI) -> None:
    """GET /, /dashboard, and the files that they load under /playground/."""
    for path, name in (("/", "index.html"), ("/dashboard", "dashboard.html")):
        app.add_api_route(path, _page(name), methods=["GET"], include_in_schema=False)
    app.mount("/playground", _Files(directory=STATIC))


def _page(name: str) -> Callable[[], Awaitable[FileResponse]]:
    async def page() -> FileResponse:
        return FileResponse(STATIC / name, headers=_HEADERS)

    return page
