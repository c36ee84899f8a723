"""What the management calls have in common that ask the store of users and tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from fastapi import Request
from pydantic import BaseModel

from dropless.server.asgi import read_body
from dropless.server.identity.gatekeeper import Gatekeeper
from dropless.server.limits import HttpLimits

if TYPE_CHECKING:
    from dropless.server.identity.store import IdentityStore

B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")


class StoreCalls:
    def __init__(self, gatekeeper: Gatekeeper, limits: HttpLimits) -> None:
        self._gatekeeper = gatekeeper
        self._limits = limits

    async def _read(self, request: Request, kind: type[B]) -> B:
        limits = self._limits
        raw = await read_body(request, limits.max_body_bytes, limits.body_timeout_s)
        return kind.model_validate_json(raw or b"{}")

    async def _ask(self, work: Callable[[IdentityStore], T]) -> T:
        authenticator = await self._gatekeeper.authenticator()
        return await authenticator.ask(work)
