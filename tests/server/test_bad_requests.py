"""Bad input over real sockets: each gets its own clear answer, and the server goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.server_process import ServerProcess
from tests.server.tiny_model import MAX_MODEL_LEN, MODEL_ID, REFUSED

USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "be brief"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": MODEL_ID, "messages": [USER], "max_tokens": 4, **fields}).encode()


def text(**fields: Any) -> bytes:
    return json.dumps({"model": MODEL_ID, "prompt": "hi", "max_tokens": 4, **fields}).encode()


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": value}}


def function(parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


# name: path, body, status, code, what the message must say
BAD: dict[str, tuple[str, bytes, int, str | None, str]] = {
    "empty body": (CHAT, b"", 400, "invalid_json", "not valid JSON"),
    "malformed JSON": (CHAT, b'{"model": ', 400, "invalid_json", "not valid JSON"),
    "not UTF-8": (CHAT, b'{"model": "\xff"}', 400, "invalid_json", "not valid JSON"),
    "garbage": (CHAT, bytes(range(256)) * 100, 400, "invalid_json", "not valid JSON"),
    "very deep JSON": (CHAT, b"[" * 100_000, 400, "invalid_json", "recursion limit"),
    "no object": (CHAT, b"[]", 400, None, "must be a JSON object"),
    "no model": (CHAT, b'{"messages": []}', 400, None, "model is missing"),
    "wrong type": (CHAT, chat(temperature="1"), 400, None, 'temperature is "1"'),
    "wrong type deep": (CHAT, chat(messages=[{"role": 1}]), 400, None, r"messages\[0\].role is 1"),
    "unknown model": (CHAT, chat(model="gpt-9"), 404, "model_not_found", f"'{MODEL_ID}'"),
    "empty messages": (CHAT, chat(messages=[]), 400, None, "messages is empty"),
    "two system messages": (CHAT, chat(messages=[SYSTEM, SYSTEM, USER]), 400, None, "only the fi"),
    "unknown role": (CHAT, chat(messages=[{**USER, "role": "robot"}]), 400, None, "'robot'"),
    "an image": (CHAT, chat(messages=[{**USER, "content": [IMAGE]}]), 400, None, "'image_url'"),
    "unknown field": (CHAT, chat(tempo=1), 400, "unknown_parameter", "'tempo'"),
    "half a tool": (CHAT, chat(tools=[{}]), 400, None, r"tools\[0\].type is missing"),
    "a tool's impossible schema": (
        CHAT,
        chat(tools=[function({"type": "object", "properties": {"a": {"type": "colour"}}})]),
        400,
        "invalid_grammar",
        "the function 'f' cannot be used.*colour",
    ),
    "the result of no call": (
        CHAT,
        chat(messages=[{"role": "tool", "tool_call_id": "c", "content": "1"}]),
        400,
        None,
        "the tool_call_id 'c'",
    ),
    "body of 10 MB": (CHAT, chat(user="x" * 10**7), 413, "request_too_large", "4194304"),
    "prompt too long": (
        CHAT,
        chat(messages=[{**USER, "content": "long " * 9000}]),
        400,
        "context_length_exceeded",
        str(MAX_MODEL_LEN),
    ),
    "answer too long": (
        TEXT,
        text(max_tokens=MAX_MODEL_LEN),
        400,
        "context_length_exceeded",
        f"max_tokens is {MAX_MODEL_LEN}",
    ),
    "negative temperature": (CHAT, chat(temperature=-0.5), 400, None, "temperature is -0.5"),
    "NaN": (CHAT, chat(top_p=float("nan")), 400, None, "top_p is nan"),
    "infinity": (CHAT, chat(presence_penalty=float("inf")), 400, None, "presence_penalty is inf"),
    "too large for a float": (CHAT, chat().replace(b"4}", b"4e999}"), 400, None, "max_tokens"),
    "huge integer": (CHAT, chat(seed=10**30), 400, None, "seed is 10+"),
    "top_k that no engine can hold": (CHAT, chat(top_k=2**63), 400, None, "top_k is 9223372036854"),
    "min_tokens without end": (TEXT, text(min_tokens=10**30), 400, None, "min_tokens is 1000000"),
    "a stop token of no model": (TEXT, text(stop_token_ids=[2**64]), 400, None, "stop_token_ids"),
    "a negative stop token": (TEXT, text(stop_token_ids=[-1]), 400, None, "stop_token_ids is -1"),
    "a bias for a huge id": (
        CHAT,
        chat(logit_bias={str(2**64): 1}),
        400,
        None,
        "logit_bias is 1844",
    ),
    "a penalty that divides by nothing": (
        CHAT,
        chat(repetition_penalty=5e-324),
        400,
        None,
        "repetition_penalty is 5e-324",
    ),
    "negative max_tokens": (CHAT, chat(max_tokens=-1), 400, None, "max_tokens is -1"),
    "bias for no token": (CHAT, chat(logit_bias={"99999": 1}), 400, None, "99999"),
    "top_k that no message holds": (CHAT, chat(top_k=2**64), 400, None, "top_k is 18446744073709"),
    "top_k that no tensor holds": (CHAT, chat(top_k=2**63), 400, None, "at most 2147483647"),
    "min_tokens of that size": (
        TEXT,
        text(max_tokens=None, min_tokens=2**64),
        400,
        None,
        "min_tok",
    ),
    "a stop token of that size": (CHAT, chat(stop_token_ids=[2**64]), 400, None, "stop_token_ids"),
    "a bias of that size": (CHAT, chat(logit_bias={str(2**64): 1}), 400, None, "logit_bias"),
    "a penalty next to nothing": (CHAT, chat(repetition_penalty=1e-300), 400, None, "0.01"),
    "n too large": (CHAT, chat(n=6), 400, None, "n is 6"),
    "impossible schema": (
        CHAT,
        chat(response_format=schema({"type": "integer", "minimum": 3, "maximum": 2})),
        400,
        "invalid_grammar",
        "json_schema",
    ),
    "schema of an unknown type": (
        CHAT,
        chat(response_format=schema({"type": "colour"})),
        400,
        "invalid_grammar",
        "colour",
    ),
    "wrong regex": (
        CHAT,
        chat(structured_outputs={"regex": "("}),
        400,
        "invalid_grammar",
        "regex",
    ),
    "template that raises": (
        CHAT,
        chat(messages=[{**USER, "content": REFUSED}]),
        400,
        "chat_template_failed",
        "does not like",
    ),
    "empty prompt": (TEXT, text(prompt=""), 400, None, "no tokens"),
    "empty prompt list": (TEXT, text(prompt=[]), 400, None, "prompt must be"),
    "prompt id of no token": (TEXT, text(prompt=[1, 512]), 400, None, "512"),
    "negative prompt id": (TEXT, text(prompt=[-1]), 400, None, "-1"),
    "suffix": (TEXT, text(suffix="end"), 400, "unsupported_parameter", "suffix"),
    "unknown path": ("/v1/chat", chat(), 404, "unknown_url", "/v1/chat/completions"),
    "wrong method": ("/v1/models", b"{}", 405, "method_not_allowed", "GET /v1/models"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_clear_answer(server: ServerProcess, name: str, stream: bool) -> None:
    path, body, status, code, says = BAD[name]
    if stream:
        body = body.replace(b'{"model"', b'{"stream": true, "model"', 1)
    response = httpx.post(f"{server.url}{path}", content=body, timeout=30)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == code
    assert re.search(says, error["message"]), error["message"]
    assert response.headers["x-request-id"].startswith("req-")


def test_the_largest_and_smallest_values_are_served(server: ServerProcess) -> None:
    fields = {"top_k": 2**31 - 1, "min_p": 1, "top_p": 1, "seed": 2**63 - 1}
    tiny = {"repetition_penalty": 0.01, "temperature": 5e-324, "top_p": 5e-324, "min_p": 5e-324}
    for asked in (fields, tiny):
        response = httpx.post(f"{server.url}{TEXT}", content=text(**asked), timeout=30)
        assert response.status_code == 200, response.text


def test_a_large_body_without_its_length_is_refused_while_it_comes(server: ServerProcess) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(160):
            sent += 65536
            yield b" " * 65536

    response = httpx.post(f"{server.url}{CHAT}", content=pieces(), timeout=30)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_a_body_just_below_the_limit_is_read(server: ServerProcess) -> None:
    room = 4 * 1024 * 1024 - len(chat(user=""))
    response = httpx.post(f"{server.url}{CHAT}", content=chat(user="x" * room), timeout=30)
    assert response.status_code == 200, response.text
    response = httpx.post(f"{server.url}{CHAT}", content=chat(user="x" * (room + 1)), timeout=30)
    assert response.status_code == 413


def test_after_all_that_it_serves(server: ServerProcess) -> None:
    response = httpx.post(f"{server.url}{CHAT}", content=chat(), timeout=30)
    assert response.status_code == 200
    stats = server.wait_until_idle()
    assert stats["kv_blocks_free"] == stats["kv_blocks_total"] > 0
