"""One's own limits, and what is taken of them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from dropless.server.gateway import Gateway, scope_principal
from dropless.server.routes import json_response


def quota_routes(gateway: Gateway) -> APIRouter:
    """Needs CAN_VIEW on the endpoint."""
    router = APIRouter()

    async def quota(request: Request, name: str) -> Response:
        principal = scope_principal(request.scope)
        endpoint = gateway.endpoint(principal, name, "CAN_VIEW")
        limits = [] if gateway.quotas is None else gateway.quotas.usage(principal, endpoint)
        return json_response({"endpoint": name, "principal": principal.name, "limits": limits})

    router.add_api_route("/api/2.0/serving-endpoints/{name:path}/quota", quota, methods=["GET"])
    return router
