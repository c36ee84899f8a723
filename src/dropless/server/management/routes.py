"""The paths of the management calls."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, TypeAdapter
from starlette.responses import Response

from dropless.errors import PermissionDeniedError
from dropless.server.asgi import read_body
from dropless.server.endpoints.manager import EndpointManager
from dropless.server.gateway import Gateway, scope_principal
from dropless.server.identity.principal import Permission, Principal
from dropless.server.management.bodies import (
    ConfigBody,
    CreateBody,
    created,
    with_config,
    with_gateway,
)
from dropless.server.management.documents import endpoint_document, gateway_document
from dropless.server.management.local_models import check_local_models
from dropless.server.openapi.document import openapi_of_endpoint
from dropless.server.routes import json_response

B = TypeVar("B", bound=BaseModel)

_OBJECT = TypeAdapter(dict[str, Any])
_ENDPOINTS = "/api/2.0/serving-endpoints"
_ENDPOINT = _ENDPOINTS + "/{name:path}"


class Management:
    """Reading needs CAN_VIEW on the endpoint, changing CAN_MANAGE, reloading an administrator, and
    so does serving from the server's disk."""

    def __init__(self, gateway: Gateway, manager: EndpointManager) -> None:
        self._gateway = gateway
        self._manager = manager

    def router(self) -> APIRouter:
        router = APIRouter()
        for path in (_ENDPOINTS, _ENDPOINTS + "/"):  # mlflow's client writes the latter
            router.add_api_route(path, self.list, methods=["GET"])
            router.add_api_route(path, self.create, methods=["POST"])
        router.add_api_route(_ENDPOINT + "/config", self.put_config, methods=["PUT"])
        router.add_api_route(_ENDPOINT + "/ai-gateway", self.put_gateway, methods=["PUT"])
        router.add_api_route(_ENDPOINT + "/openapi", self.openapi, methods=["GET"])
        router.add_api_route(_ENDPOINT, self.get, methods=["GET"])
        router.add_api_route(_ENDPOINT, self.delete, methods=["DELETE"])
        router.add_api_route("/api/2.0/config/reload", self.reload, methods=["POST"])
        return router

    async def list(self, request: Request) -> Response:
        principal = scope_principal(request.scope)
        names = [endpoint.name for endpoint in self._gateway.registry.list()]
        names += [name for name in self._manager.updates if name not in names]
        seen = [name for name in names if principal.can("CAN_VIEW", name)]
        return json_response({"endpoints": [self._document(principal, name) for name in seen]})

    async def get(self, request: Request, name: str) -> Response:
        principal = self._principal(request, name, "CAN_VIEW")
        if name not in self._manager.updates:
            self._gateway.endpoint(principal, name, "CAN_VIEW")
        return json_response(self._document(principal, name))

    async def create(self, request: Request) -> Response:
        body = await self._read(request, CreateBody)
        principal = self._principal(request, body.name, "CAN_MANAGE")
        settings = created(body)
        check_local_models(principal, settings)
        await self._manager.create(settings)
        return json_response(self._document(principal, body.name))

    async def put_config(self, request: Request, name: str) -> Response:
        principal = self._principal(request, name, "CAN_MANAGE")
        body = await self._read(request, ConfigBody)
        old = self._gateway.endpoint(principal, name, "CAN_MANAGE").settings
        new = with_config(old, body)
        check_local_models(principal, new, old)
        await self._manager.update(new)
        return json_response(self._document(principal, name))

    async def put_gateway(self, request: Request, name: str) -> Response:
        principal = self._principal(request, name, "CAN_MANAGE")
        body = _OBJECT.validate_json(await self._body(request))
        old = self._gateway.endpoint(principal, name, "CAN_MANAGE").settings
        new = with_gateway(old, body)
        await self._manager.update(new)
        return json_response(gateway_document(new))

    async def openapi(self, request: Request, name: str) -> Response:
        principal = scope_principal(request.scope)
        endpoint = self._gateway.endpoint(principal, name, "CAN_VIEW")
        length = endpoint.max_model_len
        return json_response(await asyncio.to_thread(openapi_of_endpoint, name, length))

    async def delete(self, request: Request, name: str) -> Response:
        self._principal(request, name, "CAN_MANAGE")
        await self._manager.delete(name)
        return json_response({})

    async def reload(self, request: Request) -> Response:
        principal = scope_principal(request.scope)
        if not principal.is_admin:
            raise PermissionDeniedError(
                f"{principal.name} needs CAN_MANAGE on every endpoint to reload the configuration"
            )
        # A client that leaves does not stop it half way.
        reloaded = await asyncio.shield(asyncio.ensure_future(self._manager.reload()))
        return json_response(asdict(reloaded))

    def _principal(self, request: Request, name: str, permission: Permission) -> Principal:
        """Who asks, if they may. Raises PermissionDeniedError."""
        principal = scope_principal(request.scope)
        self._gateway.check_permission(principal, name, permission)
        return principal

    def _document(self, principal: Principal, name: str) -> dict[str, Any]:
        endpoint = self._gateway.registry.get(name)
        return endpoint_document(name, endpoint, self._manager.updates.get(name), principal)

    async def _body(self, request: Request) -> bytes:
        limits = self._gateway.limits
        return await read_body(request, limits.max_body_bytes, limits.body_timeout_s)

    async def _read(self, request: Request, kind: type[B]) -> B:
        return kind.model_validate_json(await self._body(request))
