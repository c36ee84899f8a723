"""The error tree as HTTP."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from dropless.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineError,
    EngineOverloadedError,
    GrammarError,
    InvalidRequestError,
    ModelNotFoundError,
    OutOfMemoryError,
)
from dropless.server.errors import invalid_request, to_http_error
from dropless.server.protocol import ChatBody


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (InvalidRequestError("no", param="top_p"), 400, "invalid_request_error", None),
        (ContextLengthError("long"), 400, "invalid_request_error", "context_length_exceeded"),
        (GrammarError("bad"), 400, "invalid_request_error", "invalid_grammar"),
        (ModelNotFoundError("who"), 404, "invalid_request_error", "model_not_found"),
        (HTTPException(413, "big"), 413, "invalid_request_error", "request_too_large"),
        (EngineOverloadedError("full"), 503, "server_error", "overloaded"),
        (OutOfMemoryError("none left"), 503, "server_error", "out_of_memory"),
        (EngineDeadError("gone"), 503, "server_error", "engine_unavailable"),
        (EngineError("failed"), 500, "server_error", "engine_error"),
        (KeyError("bug"), 500, "server_error", "internal_error"),
    ],
)
def test_status_and_code(error: Exception, status: int, kind: str, code: str | None) -> None:
    http_error = to_http_error(error)
    assert (http_error.status, http_error.type, http_error.code) == (status, kind, code)
    response = http_error.response()
    body = json.loads(bytes(response.body))
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert response.status_code == status


def test_retry_after_is_whole_seconds_rounded_up() -> None:
    response = to_http_error(EngineOverloadedError("full", retry_after_s=1.2)).response()
    assert response.headers["retry-after"] == "2"
    response = to_http_error(EngineDeadError("failed for good")).response()
    assert "retry-after" not in response.headers


def test_a_bug_shows_nothing_of_itself() -> None:
    assert "secret" not in to_http_error(RuntimeError("secret")).message


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b"{bad", None, "the body is not valid JSON"),
        (b"", None, "the body is not valid JSON"),
        (b"[1]", None, "the body must be a JSON object, not [1]"),
        (b'{"messages":[]}', "model", "model is missing"),
        (b'{"model":3,"messages":[]}', "model", "model is 3; it must be a valid string"),
        (
            b'{"model":"m","messages":[{"role":5,"content":"a"}]}',
            "messages[0].role",
            "messages[0].role is 5; it must be a valid string",
        ),
        (
            b'{"model":"m","messages":[],"temperature":"1"}',
            "temperature",
            'temperature is "1"; it must be a valid number',
        ),
        (b'{"model":"m","messages":[],"top_p":NaN}', "top_p", "top_p is nan; it must be a finite"),
        (b'{"model":"m","messages":[],"n":true}', "n", "n is true; it must be a valid integer"),
        (b'{"model":"m","messages":[],"logit_bias":{"x":1}}', "logit_bias.x", "logit_bias.x is"),
    ],
)
def test_wrong_types_in_one_sentence(body: bytes, param: str | None, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatBody.model_validate_json(body)
    error = invalid_request(caught.value)
    assert error.param == param
    assert str(error).startswith(message)
    assert "\n" not in str(error)


def test_a_long_wrong_value_is_cut_and_problems_are_counted() -> None:
    body = json.dumps({"model": ["x" * 1000], "messages": 1})
    with pytest.raises(ValidationError) as caught:
        ChatBody.model_validate_json(body)
    message = str(invalid_request(caught.value))
    assert len(message) < 200
    assert "and 1 more problem" in message
