"""The door: nobody comes past it unknown."""

from __future__ import annotations

from collections.abc import Callable, Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from dropless.errors import DroplessError, InvalidRequestError
from dropless.server.errors import is_platform_path, to_http_error
from dropless.server.identity.browser import check_host, check_origin, host_name, single_headers
from dropless.server.identity.gatekeeper import Gatekeeper


class Identity:
    """Middleware that sets `scope["principal"]`, or answers 401 or 403 itself. Every path that
    is not public is closed, whether something is served there or not. `refused` is told of those
    that do not come in."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        gatekeeper: Gatekeeper,
        is_public: Callable[[str], bool],
        refused: Callable[[Scope, DroplessError], None],
        allowed_hosts: Collection[str] = (),
        cors_origins: Collection[str] = (),
    ) -> None:
        self._app = app
        self._gatekeeper = gatekeeper
        self._is_public = is_public
        self._refused = refused
        self._allowed_hosts = frozenset(map(host_name, allowed_hosts))
        self._cors_origins = frozenset(cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        assert scope["type"] == "http", scope["type"]
        try:
            await self._admit(scope)
        except DroplessError as error:
            self._refused(scope, error)
            response = to_http_error(error).response(is_platform_path(scope["path"]))
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _admit(self, scope: Scope) -> None:
        headers = single_headers(scope["headers"])
        host = headers.get(b"host")
        if host is None and scope["http_version"] != "1.0":
            raise InvalidRequestError("the header host is missing; HTTP/1.1 needs it")
        if self._is_public(scope["path"]):
            return
        open_here = self._gatekeeper.local and not self._gatekeeper.closed
        if open_here or self._allowed_hosts:
            check_host((host or b"").decode("latin-1"), self._allowed_hosts)
        check_origin(headers, scope["method"], self._cors_origins)
        scope["principal"] = await self._gatekeeper.principal(headers)
