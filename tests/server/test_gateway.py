"""Calls through two endpoints with real engines: each path, each ending, and what is told of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from dropless.server.call import Call
from tests.server.in_process import InProcess, serving
from tests.server.tiny_model import tiny_endpoint

SYSTEM = "Answer in one word."
USER = [{"role": "user", "content": "hi"}]
HTTP = httpx.Client(timeout=60)


@pytest.fixture(scope="module")
def server(model_folder: Path) -> Iterator[InProcess]:
    """Endpoint `one` and `org/two` have models of their own; `both` has both, and falls back."""
    one, two = tiny_endpoint(str(model_folder), "one"), tiny_endpoint(str(model_folder), "org/two")
    one["served_entities"][0]["engine"]["deterministic"] = True
    two["served_entities"][0]["engine"]["seed"] = 5
    two["system_prompt"] = SYSTEM
    routes = [
        {"served_entity_name": "one", "traffic_percentage": 50},
        {"served_entity_name": "org/two", "traffic_percentage": 50},
    ]
    both = {
        "name": "both",
        "served_entities": one["served_entities"] + two["served_entities"],
        "traffic_config": {"routes": routes},
    }
    with serving([one, two, both], seed=3) as started:
        yield started


@pytest.fixture(autouse=True)
def _forget(request: pytest.FixtureRequest) -> None:
    recorder = request.getfixturevalue("server").recorder
    recorder.clear()


def post(server: InProcess, path: str, **body: Any) -> httpx.Response:
    return HTTP.post(f"{server.url}{path}", json={"temperature": 0, **body})


def the_call(server: InProcess) -> Call:
    [call] = server.recorder.wait_for(1)
    assert server.recorder.begun == [call]
    return call


def client(server: InProcess, base: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}{base}", api_key="none", max_retries=0)


@pytest.mark.parametrize("base", ["/v1", "/serving-endpoints"])
def test_the_openai_client_by_either_base(server: InProcess, base: str) -> None:
    answers = {}
    with client(server, base) as openai_client:
        for name in ("one", "org/two"):
            chat = openai_client.chat.completions.create(
                model=name, messages=USER, max_tokens=8, temperature=0
            )
            assert chat.model == name
            stream = openai_client.completions.create(
                model=name, prompt="hi", max_tokens=8, temperature=0, stream=True
            )
            answers[name] = "".join(chunk.choices[0].text for chunk in stream)
        assert answers["one"] != answers["org/two"], "the models must differ"
        assert [model.id for model in openai_client.models.list()] == ["one", "org/two", "both"]
        assert openai_client.models.retrieve("org/two").id == "org/two"


def test_invocations_speak_the_protocol_of_their_fields(server: InProcess) -> None:
    chat = post(server, "/serving-endpoints/org/two/invocations", messages=USER, max_tokens=4)
    assert chat.json()["object"] == "chat.completion"
    assert chat.json()["model"] == "org/two"
    text = post(server, "/serving-endpoints/one/invocations", prompt="hi", max_tokens=4)
    assert text.json()["object"] == "text_completion"
    same = post(server, "/v1/completions", model="one", prompt="hi", max_tokens=4)
    assert text.json()["choices"] == same.json()["choices"]
    assert [call.api for call in server.recorder.wait_for(3)] == [
        "chat",
        "completions",
        "completions",
    ]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/serving-endpoints/one/invocations", {"prompt": 3}, 400, "INVALID_PARAMETER_VALUE"),
        ("/serving-endpoints/none/invocations", {"prompt": "a"}, 404, "RESOURCE_DOES_NOT_EXIST"),
        ("/serving-endpoints/completions", {"model": "one", "prompt": 3}, 400, None),
        ("/v1/completions", {"prompt": "a"}, 400, None),
        ("/v1/chat/completions", {"model": "none", "messages": USER}, 404, "model_not_found"),
    ],
)
def test_errors_have_the_shape_of_their_path(
    server: InProcess, path: str, body: dict[str, Any], status: int, code: str | None
) -> None:
    response = post(server, path, **body)
    assert response.status_code == status
    answer = response.json()
    if path.endswith("invocations"):
        assert answer.keys() == {"error_code", "message"}
        assert answer["error_code"] == code
    else:
        assert answer["error"]["code"] == code
    call = the_call(server)
    assert (call.status_code, call.response_body) == (status, answer)
    assert call.error
    assert call.usage is None


def whole(events: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in events.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


FIELDS: list[dict[str, Any]] = [
    {"messages": USER},
    {"messages": USER, "n": 3, "logprobs": True, "top_logprobs": 2, "seed": 1, "temperature": 1},
    {"prompt": "hi"},
    {"prompt": ["hi", "Name three"], "n": 2, "logprobs": 3, "echo": True, "seed": 2},
    {"prompt": "hi", "logprobs": 0, "stop": "e"},
]


@pytest.mark.parametrize("fields", FIELDS)
def test_a_stream_is_told_as_the_object_it_stands_for(
    server: InProcess, fields: dict[str, Any]
) -> None:
    path = "/serving-endpoints/one/invocations"
    asked = {**fields, "max_tokens": 12}
    body = post(server, path, **asked).json()
    stream = whole(post(server, path, **asked, stream=True).text)
    unary, streamed = server.recorder.wait_for(2)
    assert unary.response_body == body
    told = dict(streamed.response_body or {})
    assert told["id"] == stream[0]["id"]
    unlike = ("id", "created", "usage")  # the second finds the prompt in the cache
    assert {k: v for k, v in told.items() if k not in unlike} == {
        k: v for k, v in body.items() if k not in unlike
    }
    assert streamed.usage is not None
    assert streamed.usage.completion_tokens == body["usage"]["completion_tokens"]


def test_what_is_known_of_a_call_that_went_well(server: InProcess) -> None:
    headers = {"traceparent": "00-1-2-01", "authorization": "Bearer secret"}
    body = {"model": "one", "prompt": "hi", "max_tokens": 9, "ignore_eos": True}
    response = HTTP.post(f"{server.url}/v1/completions", json=body, headers=headers)
    call = the_call(server)
    assert call.request_id == response.headers["x-request-id"]
    assert (call.status_code, call.error, call.api) == (200, None, "completions")
    assert (call.endpoint, call.served_entity_id) == ("one", entity_ids(server, "one")[0])
    assert json.loads(call.request_body) == body
    assert call.usage is not None
    assert call.usage.body() == response.json()["usage"]
    assert call.usage.completion_tokens == 9
    assert call.timings is not None
    total_s = call.end_time - call.arrival_time
    assert 0 < call.execution_s < total_s
    assert 0 < call.timings.ttft_ms <= total_s * 1e3
    assert call.sent_headers == {"traceparent": "00-1-2-01"}


def generated(server: InProcess) -> int:
    engine = server.gateway.registry.engines.engines[0]
    stats = server.run(engine.client.health()).stats
    return 0 if stats is None else stats.generated_tokens


def wait_for_tokens(server: InProcess) -> None:
    """Until the first engine has generated some."""
    before, deadline = generated(server), time.monotonic() + 20
    while generated(server) < before + 5:
        assert time.monotonic() < deadline


def entity_ids(server: InProcess, name: str) -> list[str]:
    endpoint = server.gateway.registry.get(name)
    assert endpoint is not None
    return [entity.entity_id for entity in endpoint.entities]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_told_once_with_what_had_come(
    server: InProcess, stream: bool
) -> None:
    body = {"model": "one", "prompt": "hi", "max_tokens": 1900, "ignore_eos": True}
    content = json.dumps({**body, "stream": stream}).encode()
    port = int(server.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        if stream:
            connection.recv(1000)
        else:
            wait_for_tokens(server)
    call = the_call(server)
    assert (call.status_code, call.endpoint) == (499, "one")
    assert call.usage is not None
    assert 0 < call.usage.completion_tokens < 1900
    assert call.response_body is not None
    assert call.response_body["choices"][0]["finish_reason"] is None
    assert call.response_body["choices"][0]["text"]


def test_a_client_that_leaves_before_its_body_is_whole(server: InProcess) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"
        )
    call = the_call(server)
    assert (call.status_code, call.endpoint, call.response_body) == (499, "", None)


def told(server: InProcess, **body: Any) -> tuple[str, int]:
    """The answer's text, and how many tokens the model saw."""
    asked = {"max_tokens": 6, **body}
    answer = post(server, f"/serving-endpoints/{asked.pop('to', 'one')}/invocations", **asked)
    assert answer.status_code == 200, answer.text
    choice, usage = answer.json()["choices"][0], answer.json()["usage"]
    return choice.get("text") or choice["message"]["content"], usage["prompt_tokens"]


def test_a_callers_system_message_replaces_the_endpoints(server: InProcess) -> None:
    own = {"role": "system", "content": SYSTEM}
    assert told(server, to="org/two", messages=USER) == told(
        server, to="org/two", messages=[own, *USER]
    )
    brief = {"role": "system", "content": "a"}
    assert (
        told(server, to="org/two", messages=[brief, *USER])[1]
        < told(server, to="org/two", messages=USER)[1]
    )
    assert told(server, messages=USER)[1] < told(server, messages=[own, *USER])[1]


@pytest.mark.parametrize("to", ["one", "org/two"])
def test_a_prompt_that_is_not_raw_is_a_chat(server: InProcess, to: str) -> None:
    chat = told(server, to=to, messages=USER)
    assert told(server, to=to, prompt="hi", use_raw_prompt=False) == chat
    raw = told(server, to=to, prompt="hi")
    assert told(server, to=to, prompt="hi", use_raw_prompt=True) == raw
    assert raw[1] < chat[1]


def test_a_prompt_that_is_too_long_is_truncated_if_asked(server: InProcess) -> None:
    prompt = [5 + i % 200 for i in range(3000)]
    refused = post(server, "/v1/completions", model="one", prompt=prompt, max_tokens=48)
    assert "3000 tokens" in refused.json()["error"]["message"]
    truncated = told(server, prompt=prompt, max_tokens=48, error_behavior="truncate")
    assert truncated == told(server, prompt=prompt[-2000:], max_tokens=48)
    assert truncated[1] == 2000
    short = told(server, prompt=prompt[:9], error_behavior="truncate")
    assert short == told(server, prompt=prompt[:9])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"use_raw_prompt": False, "echo": True}, "echo"),
        ({"use_raw_prompt": False, "error_behavior": "truncate"}, "error_behavior"),
        ({"use_raw_prompt": False, "prompt": [1, 2]}, "prompt"),
        ({"use_raw_prompt": False, "suffix": "a"}, "suffix"),
        ({"suffix": "a", "echo": True}, "echo"),
        ({"suffix": "a"}, "suffix"),
        ({"error_behavior": "truncate", "echo": True}, "error_behavior"),
        ({"error_behavior": "ignore"}, "error_behavior"),
        ({"client_request_id": 3}, "client_request_id"),
        ({"usage_context": {"a": 1}}, "usage_context.a"),
    ],
)
def test_fields_that_contradict_each_other(
    server: InProcess, fields: dict[str, Any], param: str
) -> None:
    response = post(server, "/v1/completions", **{"model": "one", "prompt": "hi", **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_what_the_caller_says_of_a_call_is_recorded(server: InProcess) -> None:
    told(server, prompt="hi", client_request_id="mine", usage_context={"project": "p"})
    call = the_call(server)
    assert (call.client_request_id, call.usage_context) == ("mine", {"project": "p"})


def test_calls_go_to_both_entities_as_the_shares_say(server: InProcess) -> None:
    for _ in range(40):
        assert post(server, "/v1/completions", model="both", prompt="hi", max_tokens=1).is_success
    calls = server.recorder.wait_for(40)
    counts = [sum(c.served_entity_id == i for c in calls) for i in entity_ids(server, "both")]
    assert sum(counts) == 40
    assert min(counts) > 8


def test_an_entity_that_fails_is_stood_in_for(server: InProcess) -> None:
    registry = server.gateway.registry
    first = registry.engines.engines[0]
    long = {"prompt": "hi", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    with HTTP.stream("POST", f"{server.url}/v1/completions", json={"model": "one", **long}) as one:
        events = one.iter_lines()
        next(events)
        assert first.client.pid is not None
        os.kill(first.client.pid, signal.SIGKILL)
        lines = [line for line in events if line]
    assert "engine_unavailable" in lines[-1], "a stream that had begun is not begun again"
    for stream in (False, True):
        for _ in range(8):
            body = {"prompt": "hi", "max_tokens": 4, "stream": stream}
            assert post(server, "/v1/completions", model="both", **body).status_code == 200
    alone = post(server, "/v1/completions", model="one", prompt="hi")
    cut, *stood_in, failed = server.recorder.wait_for(18)
    assert (cut.status_code, failed.status_code, alone.status_code) == (503, 503, 503)
    assert cut.usage is not None
    assert cut.usage.completion_tokens > 0
    other = entity_ids(server, "both")[1]
    assert {(call.status_code, call.served_entity_id) for call in stood_in} == {(200, other)}
