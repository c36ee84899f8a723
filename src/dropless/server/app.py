"""The HTTP application: endpoints, health, and errors in OpenAI's shape. No torch here."""

from __future__ import annotations

import time

import msgspec
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from dropless import __version__
from dropless.engine.client import AsyncEngineClient
from dropless.errors import DroplessError
from dropless.server.asgi import RequestIds
from dropless.server.errors import error_response
from dropless.server.limits import HttpLimits
from dropless.server.openai_api import OpenAIEndpoints, ServedModel, json_response
from dropless.text.chat_template import ChatTemplate
from dropless.text.tokenizer import Tokenizer

HEALTH_TIMEOUT_S = 1.0


def create_app(
    engine: AsyncEngineClient,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    model_id: str,
    limits: HttpLimits | None = None,
) -> FastAPI:
    """The application around an engine client, which the caller starts and stops. Until the
    engine serves, requests get 503 and /health says what it does."""
    app = FastAPI(title="Dropless", version=__version__, docs_url=None, redoc_url=None)
    model = ServedModel(model_id, tokenizer, template, created=int(time.time()))
    app.include_router(OpenAIEndpoints(engine, model, limits or HttpLimits()).router())
    _add_status_routes(app, engine)
    for kind in (DroplessError, HTTPException, ValidationError):
        app.add_exception_handler(kind, error_response)
    app.add_middleware(RequestIds)
    return app


def _add_status_routes(app: FastAPI, engine: AsyncEngineClient) -> None:
    @app.get("/health")
    async def health() -> Response:
        """200 only if the engine itself answered within a second."""
        health = await engine.health(HEALTH_TIMEOUT_S)
        body = {
            "status": "ok" if health.ok else "unavailable",
            "state": health.state,
            "detail": health.detail,
            "restarts": health.restarts,
            "stats": None if health.stats is None else msgspec.to_builtins(health.stats),
        }
        return json_response(body, 200 if health.ok else 503)

    @app.get("/version")
    async def version() -> Response:
        return json_response({"version": __version__})
