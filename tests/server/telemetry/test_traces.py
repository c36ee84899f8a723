"""Traces of a real server, as a collector gets them."""

from __future__ import annotations

import json
import re
import time

import httpx
import pytest
from mlflow.entities.span import Span as MlflowSpan
from mlflow.tracing.otel.translation import translate_span_when_storing
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.server.server_process import ServerProcess
from tests.server.telemetry.conftest import DENSE
from tests.server.telemetry.receiver import Receiver, attributes

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAID = "Name a colour."
SET_NS = 20_000_000  # by how much a clock may be set back while a test runs


def ask(server: ServerProcess, **headers: str) -> httpx.Response:
    body = {
        "model": DENSE,
        "messages": [{"role": "user", "content": SAID}],
        "max_tokens": 4,
        "temperature": 0.5,
        "ignore_eos": True,
    }
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers)


def test_a_call_is_a_span_with_its_stages_in_it(telling: ServerProcess, receiver: Receiver) -> None:
    sent = time.time_ns()
    response = ask(telling)
    done = time.time_ns()
    spans = receiver.trace(response.headers["x-request-id"])
    call = spans.pop("call")
    assert (call.name, call.kind) == (f"chat {DENSE}", Span.SPAN_KIND_SERVER)
    assert sent - SET_NS < call.start_time_unix_nano
    assert call.end_time_unix_nano < done + SET_NS
    assert list(spans) == ["queue", "prefill", "decode"]
    at = call.start_time_unix_nano - SET_NS
    for span in spans.values():
        assert span.trace_id == call.trace_id
        assert at <= span.start_time_unix_nano <= span.end_time_unix_nano + SET_NS
        at = span.end_time_unix_nano - SET_NS
    assert at <= call.end_time_unix_nano
    usage = response.json()["usage"]
    found = attributes(call)
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.request.model"] == DENSE
    assert found["gen_ai.request.max_tokens"] == 4
    assert found["gen_ai.request.temperature"] == 0.5
    assert found["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == 4
    assert found["gen_ai.response.finish_reasons"] == ["length"]
    assert found["http.response.status_code"] == 200
    path, headers = receiver.requests[-1]
    assert path == "/v1/traces"
    assert headers["x-key"] == "of the collector"
    assert attributes(receiver.resources[-1])["service.name"] == "models"


def test_mlflow_reads_type_tokens_inputs_and_outputs(
    telling: ServerProcess, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_MODEL_CATALOG_URI", "")  # else it looks for prices in the net
    response = ask(telling)
    call = receiver.trace(response.headers["x-request-id"])["call"]
    span = MlflowSpan.from_dict(translate_span_when_storing(MlflowSpan.from_otel_proto(call)))
    assert span.span_type == "CHAT_MODEL"
    assert span.inputs["messages"][0]["content"] == SAID
    answer = response.json()["choices"][0]["message"]["content"]
    assert span.outputs["choices"][0]["message"]["content"] == answer
    usage = response.json()["usage"]
    assert span.get_attribute("mlflow.chat.tokenUsage") == {
        "input_tokens": usage["prompt_tokens"],
        "output_tokens": usage["completion_tokens"],
        "total_tokens": usage["total_tokens"],
    }


def test_a_clients_trace_goes_on_and_is_answered(
    telling: ServerProcess, receiver: Receiver
) -> None:
    response = ask(telling, traceparent=f"00-{TRACE_ID}-{PARENT_ID}-01", tracestate="a=b")
    call = receiver.trace(response.headers["x-request-id"])["call"]
    assert call.trace_id.hex() == TRACE_ID
    assert call.parent_span_id.hex() == PARENT_ID
    assert response.headers["traceparent"] == f"00-{TRACE_ID}-{call.span_id.hex()}-01"


@pytest.mark.parametrize("header", ["nonsense", f"00-{'0' * 32}-{PARENT_ID}-01", "\u00ff" * 9])
def test_a_wrong_traceparent_begins_a_new_trace(telling: ServerProcess, header: str) -> None:
    response = httpx.post(
        f"{telling.url}/v1/chat/completions", headers={"traceparent": header.encode("latin-1")}
    )
    assert response.status_code == 400
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-0[13]", response.headers["traceparent"])
    assert "0" * 32 not in response.headers["traceparent"]


def test_who_does_not_sample_is_not_traced(telling: ServerProcess, receiver: Receiver) -> None:
    response = ask(telling, traceparent=f"00-{TRACE_ID}-{PARENT_ID}-00")
    assert response.headers["traceparent"].endswith("-00")
    later = ask(telling).headers["x-request-id"]
    receiver.trace(later)
    ids = [attributes(span).get("dropless.request_id") for span in receiver.spans]
    assert response.headers["x-request-id"] not in ids


def test_a_refused_call_is_traced_without_stages(
    telling: ServerProcess, receiver: Receiver
) -> None:
    response = httpx.post(f"{telling.url}/v1/chat/completions", content=b"{")
    spans = receiver.trace(response.headers["x-request-id"])
    assert list(spans) == ["call"]
    assert spans["call"].status.code == Status.STATUS_CODE_UNSET, "the caller's fault"
    assert attributes(spans["call"])["error.type"] == "400"


def test_logs_are_lines_of_json_with_the_requests_id(telling: ServerProcess) -> None:
    response = ask(telling)
    request_id = response.headers["x-request-id"]
    deadline = time.monotonic() + 5
    while not any(request_id in line for line in telling.errors):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lines = [json.loads(line) for line in telling.errors]
    [line] = [line for line in lines if line.get("request_id") == request_id]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/chat/completions", 200)
    assert (line["endpoint"], line["completion_tokens"]) == (DENSE, 4)
    assert line["duration_ms"] >= line["ttft_ms"] > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert any(line.get("part") == "engine" for line in lines), "engines log the same way"
    assert SAID not in "".join(telling.errors)
