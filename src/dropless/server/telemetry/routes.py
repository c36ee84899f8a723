"""The paths of metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from dropless.server.gateway import Gateway, scope_principal
from dropless.server.identity.principal import ALL_ENDPOINTS
from dropless.server.telemetry.metrics import CONTENT_TYPE, Metrics


def metrics_routes(gateway: Gateway, metrics: Metrics) -> APIRouter:
    """All metrics for who may see every endpoint, those of one for who may see that."""
    router = APIRouter()

    @router.get("/metrics")
    async def all_metrics(request: Request) -> Response:
        gateway.check_permission(scope_principal(request.scope), ALL_ENDPOINTS, "CAN_VIEW")
        return Response(await metrics.text(), media_type=CONTENT_TYPE)

    @router.get("/api/2.0/serving-endpoints/{name:path}/metrics")
    async def metrics_of(request: Request, name: str) -> Response:
        endpoint = gateway.endpoint(scope_principal(request.scope), name, "CAN_VIEW")
        return Response(await metrics.text_of(endpoint.name), media_type=CONTENT_TYPE)

    return router
