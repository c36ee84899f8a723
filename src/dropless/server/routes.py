"""Which path leads where: the protocols' paths to the gateway, lists of what is served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from dropless.errors import DroplessError
from dropless.server.call import Api
from dropless.server.endpoints.endpoint import Endpoint
from dropless.server.gateway import Gateway, scope_principal

_OPENAI_BASES = ("/v1", "/serving-endpoints")
_OPENAI_PATHS: dict[str, Api] = {
    "chat/completions": "chat",
    "completions": "completions",
    "embeddings": "embeddings",
}


_INVOCATIONS = ("/serving-endpoints/", "/invocations")  # around the endpoint's name


def call_routes(gateway: Gateway) -> list[BaseRoute]:
    """The paths of calls. They are plain ASGI: a framework's work for each request costs more
    than the gateway's own."""
    routes: list[BaseRoute] = []
    for base in _OPENAI_BASES:
        for path, api in _OPENAI_PATHS.items():
            routes.append(Route(f"{base}/{path}", _Calls(gateway, api), methods=["POST"]))
    invocations = "{name:path}".join(_INVOCATIONS)
    routes.append(Route(invocations, _Calls(gateway, None), methods=["POST"]))
    return routes


def tell_refusals(gateway: Gateway) -> Callable[[Scope, DroplessError], None]:
    """What tells the gateway of requests that the door turns away, if they are calls."""
    apis = {f"{base}/{path}": api for base in _OPENAI_BASES for path, api in _OPENAI_PATHS.items()}
    before, after = _INVOCATIONS

    def refused(scope: Scope, error: DroplessError) -> None:
        path: str = scope["path"]
        api, name = apis.get(path), ""
        if path.startswith(before) and path.endswith(after):
            api, name = "chat", path[len(before) : -len(after)]
        if api is not None and scope["method"] == "POST":
            gateway.refused(scope["request_id"], api, name, error)

    return refused


class _Calls:
    """An ASGI application whose every request is a call."""

    def __init__(self, gateway: Gateway, api: Api | None) -> None:
        self._gateway = gateway
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"].get("name")
        await self._gateway.serve(scope, receive, send, self._api, name)


def model_routes(gateway: Gateway) -> APIRouter:
    """OpenAI's lists of models: the endpoints that the caller may see."""
    router = APIRouter()

    async def models(request: Request) -> Response:
        seen = gateway.visible_to(scope_principal(request.scope))
        return json_response({"object": "list", "data": [_entry(endpoint) for endpoint in seen]})

    async def model(request: Request, model_id: str) -> Response:
        endpoint = gateway.endpoint(scope_principal(request.scope), model_id, "CAN_VIEW")
        return json_response(_entry(endpoint))

    for base in _OPENAI_BASES:
        router.add_api_route(f"{base}/models", models, methods=["GET"])
        router.add_api_route(f"{base}/models/{{model_id:path}}", model, methods=["GET"])
    return router


def _entry(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.name,
        "object": "model",
        "created": int(endpoint.created),
        "owned_by": "dropless",
        "task": endpoint.task,
        "max_model_len": endpoint.max_model_len,
    }


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
