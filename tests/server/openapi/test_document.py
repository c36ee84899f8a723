"""The OpenAPI documents: whole, well formed, and true of what the server answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.openapi.utils import get_openapi
from jsonschema import Draft202012Validator
from starlette.routing import Route

from dropless.server.app import create_app, is_public
from dropless.server.configuration.settings import Configuration
from dropless.server.openapi.document import openapi_of_endpoint, server_document
from dropless.server.parts import Parts
from tests.server.server_process import ServerProcess
from tests.server.tiny_model import MODEL_ID

METRICS = {("/metrics", "get"), ("/api/2.0/serving-endpoints/{name}/metrics", "get")}
USER = {"role": "user", "content": "hi"}
HTTP = httpx.Client(timeout=60)


def test_every_route_is_in_it_and_nothing_else(tmp_path: Path) -> None:
    app = create_app(Parts(Configuration(data=tmp_path), "127.0.0.1", None))
    served = {
        (path, method)
        for path, methods in get_openapi(title="", version="", routes=app.routes)["paths"].items()
        for method in methods
    }
    calls = {
        (route.path, method.lower())
        for route in app.routes
        if isinstance(route, Route) and type(route) is Route
        for method in route.methods or ()
    }
    documented = {
        (path, method) for path, methods in server_document()["paths"].items() for method in methods
    }
    plain = {
        (path.replace(":path}", "}").rstrip("/"), method)
        for path, method in served | calls
        if path == "/health" or not is_public(path)  # the pages
    }
    assert plain - METRICS == documented - METRICS
    assert documented >= METRICS, "which a configuration can leave out"


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    if isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_schemas_are_schemas_and_references_lead_to_them() -> None:
    document = server_document()
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= known
    ids = [op["operationId"] for methods in document["paths"].values() for op in methods.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("body", ["ChatBody", "CompletionBody", "EmbeddingBody"])
def test_every_field_of_a_call_is_described(body: str) -> None:
    fields = server_document()["components"]["schemas"][body]["properties"]
    assert [name for name, schema in fields.items() if not schema.get("description")] == []


def validator(path: str, method: str, status: int) -> Draft202012Validator:
    document = server_document()
    response = document["paths"][path][method]["responses"][str(status)]
    schema = response["content"]["application/json"]["schema"]
    return Draft202012Validator({**schema, "components": document["components"]})


CHAT = {"model": MODEL_ID, "messages": [USER], "max_tokens": 4}
TEXT = {"model": MODEL_ID, "prompt": "hi", "max_tokens": 4}
ENTITY = {"entity_name": "no-such-model"}
ANSWERS: list[tuple[str, str, Any, int]] = [
    ("post", "/v1/chat/completions", CHAT, 200),
    ("post", "/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2, "n": 2}, 200),
    ("post", "/v1/chat/completions", {**CHAT, "prompt_logprobs": 1, "include_timings": True}, 200),
    ("post", "/v1/chat/completions", {**CHAT, "temperature": 9}, 400),
    ("post", "/v1/chat/completions", {**CHAT, "model": "none"}, 404),
    ("post", "/v1/completions", {**TEXT, "logprobs": 2, "echo": True}, 200),
    ("post", "/serving-endpoints/{name}/invocations", {"prompt": "hi", "max_tokens": 1}, 200),
    ("post", "/serving-endpoints/{name}/invocations", {"prompt": 3}, 400),
    ("get", "/v1/models", None, 200),
    ("get", "/v1/models/{model_id}", None, 200),
    ("get", "/health", None, 200),
    ("get", "/version", None, 200),
    ("get", "/openapi.json", None, 200),
    ("get", "/api/2.0/serving-endpoints", None, 200),
    ("get", "/api/2.0/serving-endpoints/{name}", None, 200),
    ("get", "/api/2.0/serving-endpoints/{name}/openapi", None, 200),
    (
        "post",
        "/api/2.0/serving-endpoints",
        {"name": MODEL_ID, "config": {"served_entities": [ENTITY]}},
        409,
    ),
    (
        "put",
        "/api/2.0/serving-endpoints/{name}/config",
        {"served_entities": [ENTITY]},
        404,
    ),
    ("get", "/api/2.0/session", None, 200),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), ANSWERS)
def test_answers_are_as_it_says(
    server: ServerProcess, method: str, path: str, body: Any, status: int
) -> None:
    filled = path.replace("{name}", MODEL_ID).replace("{model_id}", MODEL_ID)
    response = HTTP.request(method, f"{server.url}{filled}", json=body)
    assert response.status_code == status, response.text
    validator(path, method, status).validate(response.json())


@pytest.mark.parametrize("fields", [CHAT, TEXT, {**CHAT, "logprobs": True, "n": 2}])
def test_chunks_are_as_it_says(server: ServerProcess, fields: dict[str, Any]) -> None:
    chat = "messages" in fields
    path = "/v1/chat/completions" if chat else "/v1/completions"
    asked = {**fields, "stream": True, "stream_options": {"include_usage": True}}
    lines = [
        line for line in HTTP.post(f"{server.url}{path}", json=asked).text.splitlines() if line
    ]
    document = server_document()
    name = "ChatCompletionChunk" if chat else "TextCompletion"
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    chunks = [line.removeprefix("data: ") for line in lines[:-1]]
    assert len(chunks) >= 3
    for chunk in chunks:
        Draft202012Validator(schema).validate(httpx.Response(200, text=chunk).json())


def test_of_one_endpoint() -> None:
    document = openapi_of_endpoint("org/name", 2048)
    assert list(document["paths"]) == ["/serving-endpoints/org/name/invocations"]
    [operation] = document["paths"].values()
    assert "2048 tokens" in operation["post"]["description"]
    assert server_document()["info"]["title"] == "Dropless", "the other one stays as it is"


def test_a_method_that_is_not_served_says_which_are(server: ServerProcess) -> None:
    response = HTTP.delete(f"{server.url}/v1/chat/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
