"""The JSON behind the dashboard, under /api/2.0/dashboard."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.responses import Response

from dropless.errors import PermissionDeniedError, ResourceNotFoundError
from dropless.server.gateway import scope_principal
from dropless.server.identity.principal import Principal
from dropless.server.live_numbers import LiveNumbers
from dropless.server.playground.shapes import (
    EndpointState,
    ExpertsBody,
    LiveBody,
    Rows,
    ServedExperts,
    UsageBody,
)
from dropless.server.routes import json_response

MAX_ROWS = 200


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _LiveQuery(_Query):
    since: float = 0.0  # samples after this time


class _RowsQuery(_Query):
    endpoint: str | None = None
    text: str | None = None
    requester: str | None = None
    status: Annotated[str, StringConstraints(pattern="^[1-5]([0-9][0-9]|xx)$")] | None = None
    since: float | None = None
    until: float | None = None
    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_ROWS)] = 50


class Dashboard:
    """Who may not manage the server sees their own usage and rows, and no others'."""

    def __init__(
        self,
        numbers: LiveNumbers,
        endpoints: Callable[[], list[EndpointState]],
        experts: Callable[[], list[ServedExperts]],
        rows: Rows,
    ) -> None:
        self._numbers = numbers
        self._endpoints = endpoints
        self._experts = experts
        self._rows = rows

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/api/2.0/dashboard")
        router.add_api_route("/live", self.live, methods=["GET"])
        router.add_api_route("/usage", self.usage, methods=["GET"])
        router.add_api_route("/expert-load", self.expert_load, methods=["GET"])
        router.add_api_route("/rows", self.search, methods=["GET"])
        router.add_api_route("/rows/{request_id}", self.row, methods=["GET"])
        return router

    async def live(self, request: Request) -> Response:
        query = _LiveQuery.model_validate(dict(request.query_params))
        principal, now = scope_principal(request.scope), time.time()
        body = LiveBody(
            time=now,
            started=self._numbers.started,
            samples=self._numbers.samples(query.since),
            latencies=self._numbers.latencies(now),
            totals=self._numbers.totals,
            endpoints=[e for e in self._endpoints() if principal.can("CAN_VIEW", e.name)],
        )
        return json_response(body)

    async def usage(self, request: Request) -> Response:
        principal = scope_principal(request.scope)
        usage = self._numbers.usage(time.time())
        users = [u for u in usage.users.values() if principal.is_admin or u.name == principal.name]
        users.sort(key=lambda user: (-user.tokens_in - user.tokens_out, user.name))
        statuses = {str(status): count for status, count in sorted(usage.statuses.items())}
        everybody = principal.is_admin
        return json_response(UsageBody(users, statuses if everybody else {}, everybody))

    async def expert_load(self, request: Request) -> Response:
        principal = scope_principal(request.scope)
        seen = [e for e in self._experts() if principal.can("CAN_VIEW", e.endpoint)]
        return json_response(ExpertsBody(seen))

    async def search(self, request: Request) -> Response:
        query = _RowsQuery.model_validate(dict(request.query_params))
        principal = scope_principal(request.scope)
        asked = query.model_dump()
        if not _may_read_all(principal, query.endpoint):
            if query.requester not in (None, principal.name):
                where = "all endpoints" if query.endpoint is None else repr(query.endpoint)
                raise PermissionDeniedError(
                    f"{principal.name} needs CAN_MANAGE on {where} to see the rows of others"
                )
            asked["requester"] = principal.name
        return json_response(await self._rows.search(**asked))

    async def row(self, request: Request, request_id: str) -> Response:
        row = await self._rows.row(request_id)
        principal = scope_principal(request.scope)
        if row is None or not (
            row["requester"] == principal.name or _may_read_all(principal, row["endpoint"])
        ):
            raise ResourceNotFoundError(f"no row has the databricks_request_id {request_id!r}")
        return json_response(row)


def _may_read_all(principal: Principal, endpoint: str | None) -> bool:
    return principal.is_admin if endpoint is None else principal.can("CAN_MANAGE", endpoint)
