"""The HTTP application: calls, lists, health, and errors in the shape of their path. No torch."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import get_args

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from dropless import __version__
from dropless.errors import DroplessError
from dropless.server.asgi import RequestIds
from dropless.server.errors import error_response
from dropless.server.gateway import Gateway
from dropless.server.health import health_of
from dropless.server.identity.api import IdentityApi
from dropless.server.identity.directory import GroupsApi, PrincipalsApi
from dropless.server.identity.middleware import Identity
from dropless.server.identity.principal import PrincipalKind
from dropless.server.inference_table import InferenceTables
from dropless.server.management.routes import Management
from dropless.server.openapi.document import server_document
from dropless.server.parts import Parts
from dropless.server.playground.dashboard import Dashboard
from dropless.server.playground.endpoint_states import endpoint_states, served_experts
from dropless.server.playground.pages import Pages
from dropless.server.quotas.api import quota_routes
from dropless.server.quotas.quotas import RATE_LIMIT_HEADERS
from dropless.server.routes import call_routes, json_response, model_routes, tell_refusals
from dropless.server.security_headers import SecurityHeaders
from dropless.server.telemetry.routes import metrics_routes
from dropless.server.traffic import CountTraffic, Traffic

# What is open to everybody, with a token or without. All else is closed, whatever is added later.
_PUBLIC_PATHS = frozenset({"/health", "/", "/dashboard"})
_PAGE_FILES = "/playground/"


def is_public(path: str) -> bool:
    """The pages are, but nothing that they show."""
    return path in _PUBLIC_PATHS or path.startswith(_PAGE_FILES)


def create_app(parts: Parts) -> FastAPI:
    """The application around a server's parts, which the caller opens. Until an endpoint's models
    are loaded, its calls get 503 and /health says what they do."""
    gateway, gatekeeper, settings = parts.gateway, parts.gatekeeper, parts.settings
    app = FastAPI(
        title="Dropless", version=__version__, openapi_url=None, docs_url=None, redoc_url=None
    )
    app.router.routes += call_routes(gateway)
    app.include_router(model_routes(gateway))
    app.include_router(quota_routes(gateway))  # before the endpoints, whose names may have slashes
    if parts.metrics is not None:
        app.include_router(metrics_routes(gateway, parts.metrics))
    app.include_router(Management(gateway, parts.manager).router())
    app.include_router(IdentityApi(gatekeeper, settings.limits).router())
    for kind in get_args(PrincipalKind):
        app.include_router(PrincipalsApi(gatekeeper, settings.limits, kind).router())
    app.include_router(GroupsApi(gatekeeper, settings.limits).router())
    states = partial(endpoint_states, parts.registry)
    experts = partial(served_experts, parts.registry, parts.experts)
    app.include_router(Dashboard(parts.numbers, states, experts, parts.rows).router())
    _add_status_routes(app, gateway, parts.traffic, parts.tables)
    app.router.routes += Pages().routes()
    for kind in (DroplessError, HTTPException, ValidationError):
        app.add_exception_handler(kind, error_response)
    # From the innermost to the outermost.
    app.add_middleware(
        Identity,
        gatekeeper=gatekeeper,
        is_public=is_public,
        refused=tell_refusals(gateway),
        allowed_hosts=settings.allowed_hosts,
        cors_origins=settings.cors_origins,
    )
    app.add_middleware(CountTraffic, traffic=parts.traffic)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["retry-after", "x-request-id", *RATE_LIMIT_HEADERS],
        )
    app.add_middleware(SecurityHeaders)
    app.add_middleware(RequestIds)
    return app


def _add_status_routes(
    app: FastAPI, gateway: Gateway, traffic: Traffic, tables: InferenceTables
) -> None:
    @app.get("/health")
    async def health() -> Response:
        """200 only if every engine answered within a second, the encoder is there if it is
        needed, and new requests are taken."""
        registry = gateway.registry
        body = await health_of(registry.engines.engines)
        body["encoder"] = registry.encoder.health()
        if registry.encoder_lacks and body["status"] == "ok":
            detail = f"nothing can be judged or embedded: {registry.encoder.detail}"
            body |= {"status": "unavailable", "state": "restarting", "detail": detail}
        if traffic.draining:
            detail = f"no new requests are taken; {traffic.running} run"
            body |= {"status": "unavailable", "state": "draining", "detail": detail}
        logging = tables.status()
        if logging is not None:
            body["inference_tables"] = logging.health()
        return json_response(body, 200 if body["status"] == "ok" else 503)

    @app.get("/version")
    async def version() -> Response:
        return json_response({"version": __version__})

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return json_response(await asyncio.to_thread(server_document))
