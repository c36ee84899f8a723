"""Writes the OpenAPI documents out of `openapi.yaml` and of the models that read bodies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from dropless import __version__
from dropless.server.configuration.endpoint_settings import EndpointSettings
from dropless.server.embeddings.body import EmbeddingBody, NamedEmbeddingBody
from dropless.server.errors import is_platform_path
from dropless.server.identity.directory_bodies import (
    GroupBody,
    GroupPatchBody,
    ServicePrincipalBody,
    UserBody,
)
from dropless.server.identity.requests import (
    CreateTokenBody,
    DeleteTokenBody,
    OnBehalfOfBody,
    PermissionsBody,
)
from dropless.server.management.bodies import GATEWAY_KEYS, ConfigBody, CreateBody
from dropless.server.protocol import (
    ChatBody,
    CompletionBody,
    NamedChatBody,
    NamedCompletionBody,
)

Schema = dict[str, Any]

_REF = "#/components/schemas/"
_CALL_BODIES: tuple[type[BaseModel], ...] = (
    ChatBody,
    CompletionBody,
    NamedChatBody,
    NamedCompletionBody,
    EmbeddingBody,
    NamedEmbeddingBody,
)
_CALL_PARTS = (
    "CallBody",
    "CalledFunction",
    "FunctionBody",
    "NamedChoice",
    "NamedFunction",
    "ToolBody",
)
_OTHER_BODIES: tuple[type[BaseModel], ...] = (
    CreateBody,
    ConfigBody,
    EndpointSettings,
    CreateTokenBody,
    OnBehalfOfBody,
    DeleteTokenBody,
    PermissionsBody,
    UserBody,
    ServicePrincipalBody,
    GroupBody,
    GroupPatchBody,
)


@cache
def server_document() -> Schema:
    """Of every path that the server answers, but its pages."""
    source = _source()
    return {
        "openapi": "3.1.0",
        "info": {**source["info"], "version": __version__},
        "tags": source["tags"],
        "security": [{"token": []}, {}],
        "paths": {path: _methods(path, methods) for path, methods in source["paths"].items()},
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def openapi_of_endpoint(name: str, max_model_len: int | None) -> Schema:
    """Of one endpoint's own path. `max_model_len` is None while a model loads."""
    whole = server_document()
    template = "/serving-endpoints/{name}/invocations"
    path = template.replace("{name}", name)
    operation = {**whole["paths"][template]["post"], "parameters": []}
    if max_model_len is not None:
        operation["description"] = (
            f"Prompt and answer together have at most {max_model_len} tokens."
        )
    return {
        **whole,
        "info": {**whole["info"], "title": f"The endpoint {name}"},
        "paths": {path: {"post": operation}},
    }


@cache
def _source() -> Schema:
    text = resources.files("dropless.server.openapi").joinpath("openapi.yaml").read_text("utf-8")
    source: Schema = yaml.safe_load(text)
    return source


def _methods(path: str, methods: Mapping[str, Schema]) -> Schema:
    return {method: _operation(path, told) for method, told in methods.items()}


def _operation(path: str, told: Schema) -> Schema:
    unique = re.sub(r"\W+", "_", path).strip("_")
    operation: Schema = {
        "operationId": f"{told['id']}_{unique}",
        "tags": [told["tag"]],
        "summary": told["summary"],
        "parameters": [
            *(_parameter(name, "path") for name in re.findall(r"{(\w+)}", path)),
            *(_parameter(name, "query") for name in told.get("query", ())),
        ],
        "responses": _responses(path, told),
    }
    if "body" in told:
        content = {"application/json": {"schema": _ref(told["body"])}}
        operation["requestBody"] = {"required": True, "content": content}
    if told.get("open"):
        operation["security"] = []
    return operation


def _parameter(name: str, place: str) -> Schema:
    schema: Schema = {"type": "string", "minLength": 1}
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _responses(path: str, told: Schema) -> Schema:
    content: Schema = {}
    if "answer" in told:
        content["application/json"] = {"schema": _ref(told["answer"])}
    if "text" in told:
        content["text/plain"] = {"schema": {"type": "string", "description": told["text"]}}
    if "stream" in told:
        events = {"description": f"Server-sent events whose data is a {told['stream']}, as JSON."}
        content["text/event-stream"] = {"schema": events}
    responses: Schema = {"200": {"description": "As asked.", "content": content}}
    shape = _ref("PlatformError" if is_platform_path(path) else "Error")
    for status, meaning in _source()["errors"].items():
        # What guardrails block, and what quotas refuse, looks the same on all paths.
        either = {"anyOf": [_ref("Error"), _ref("PlatformError")]}
        schema = either if status in (400, 429) else shape
        if status == 503 and "unwell" in told:
            schema = _ref(told["unwell"])
        json = {"application/json": {"schema": schema}}
        responses[str(status)] = {"description": meaning, "content": json}
    return responses


def _ref(name: str) -> Schema:
    return {"$ref": _REF + name}


def _schemas() -> Schema:
    bodies = [(model, "validation") for model in (*_CALL_BODIES, *_OTHER_BODIES)]
    _, written = models_json_schema(bodies, ref_template=_REF + "{model}")  # type: ignore[arg-type]
    schemas: Schema = written["$defs"]
    endpoint = schemas.pop("EndpointSettings")
    for name in _CALL_PARTS:
        schemas[name]["additionalProperties"] = False
    for name in (*(model.__name__ for model in _CALL_BODIES), "ChatMessage"):
        schemas[name]["additionalProperties"] = False
        fields = schemas[name]["properties"]
        schemas[name]["properties"] = {field: _noted(field, fields[field]) for field in fields}
    schemas["AiGateway"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {key: endpoint["properties"][key] for key in GATEWAY_KEYS},
    }
    schemas["Invocation"] = _any("NamedChatBody", "NamedCompletionBody", "NamedEmbeddingBody")
    schemas["InvocationAnswer"] = _any("ChatCompletion", "TextCompletion", "Embeddings")
    return {**schemas, **_source()["schemas"]}


def _noted(field: str, schema: Schema) -> Schema:
    """The field's schema with what the notes say of it."""
    note = dict(_source()["fields"].get(field, {}))
    about = {"description": note.pop("description")} if "description" in note else {}
    null = {"type": "null"}
    own = [variant for variant in schema.get("anyOf", [schema]) if variant != null]
    variants = note.pop("anyOf", None) or [{**own[0], **note}, *own[1:]]
    if null in schema.get("anyOf", ()):
        variants = [*variants, null]
    return {**(variants[0] if len(variants) == 1 else {"anyOf": variants}), **about}


def _any(*names: str) -> Schema:
    return {"anyOf": [_ref(name) for name in names]}
