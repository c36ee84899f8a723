"""Calls through the official client, from a real engine. The tiny model samples at random: what it
must call with which arguments is what its grammar leaves it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.server.server_process import ServerProcess
from tests.server.tiny_model import MODEL_ID

ARGUMENTS = {"city": 'São "Paulo"', "days": [3, -1]}


def tool(name: str, arguments: dict[str, Any]) -> Any:
    """A function that can be called in one way only."""
    properties = {key: {"const": value} for key, value in arguments.items()}
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


ASKED: Any = {
    "model": MODEL_ID,
    "messages": [{"role": "user", "content": "The weather?"}],
    "tools": [tool("weather", ARGUMENTS)],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "seed": 3,
    "logit_bias": dict.fromkeys(("200", "201", "204", "223"), -30),  # white space: less to wait for
}


def test_a_call(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASKED, n=2, logprobs=True)
    assert len({choice.message.tool_calls[0].id for choice in answer.choices}) == 2  # type: ignore[index]
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert choice.logprobs is not None
        assert choice.logprobs.content == []
        [call] = choice.message.tool_calls or []
        assert call.type == "function"
        assert call.id.startswith("call_")
        assert call.function.name == "weather"
        assert json.loads(call.function.arguments) == ARGUMENTS


def test_a_stream_puts_together_the_same(client: openai.OpenAI) -> None:
    body = client.chat.completions.create(**ASKED)
    options: Any = {"include_usage": True}
    with client.chat.completions.stream(**ASKED, stream_options=options) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    message, expected = final.choices[0].message, body.choices[0].message
    assert (message.role, message.content) == ("assistant", None)
    assert message.tool_calls is not None
    assert expected.tool_calls is not None
    assert message.tool_calls[0].id.startswith("call_")
    assert message.tool_calls[0].function.name == expected.tool_calls[0].function.name
    assert message.tool_calls[0].function.arguments == expected.tool_calls[0].function.arguments
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.usage == body.usage
    chunks = [event.chunk for event in events if event.type == "chunk"]
    calls = [c.choices[0].delta.tool_calls for c in chunks if c.choices]
    begun, *others = [call[0] for call in calls if call]
    assert (begun.index, begun.function.arguments) == (0, "")  # type: ignore[union-attr]
    assert all(piece.id is None and piece.function.name is None for piece in others)  # type: ignore[union-attr]
    assert len(others) > 5


def test_the_named_function_is_called_once(client: openai.OpenAI) -> None:
    tools = [tool("weather", ARGUMENTS), tool("time", {})]
    choice: Any = {"type": "function", "function": {"name": "time"}}
    answer = client.chat.completions.create(**{**ASKED, "tools": tools, "tool_choice": choice})
    [call] = answer.choices[0].message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == ("time", {})


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_max_tokens_cut(client: openai.OpenAI, stream: bool) -> None:
    asked = {**ASKED, "max_tokens": 3}
    if stream:
        *_, last = client.chat.completions.create(**asked, stream=True)
        assert last.choices[0].finish_reason == "length"
        return
    [choice] = client.chat.completions.create(**asked).choices
    assert (choice.finish_reason, choice.message.content) == ("length", None)
    assert choice.message.tool_calls is None


def test_the_next_turn_counts_calls_and_results(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASKED)
    message = answer.choices[0].message
    result = {
        "role": "tool",
        "tool_call_id": message.tool_calls[0].id,  # type: ignore[index]
        "content": "sunny",
    }
    first = ASKED["messages"][0]
    asked = {**ASKED, "tool_choice": "auto", "max_tokens": 2, "temperature": 0}

    def prompt_tokens(*messages: Any) -> int:
        usage = client.chat.completions.create(**{**asked, "messages": messages}).usage
        assert usage is not None
        return usage.prompt_tokens

    called = message.model_dump(exclude_none=True)
    whole = prompt_tokens(first, message.model_dump(), result)
    assert whole > prompt_tokens(first, called) > prompt_tokens(first)
    answer = client.chat.completions.create(**{**asked, "tools": openai.omit})
    assert answer.usage is not None
    assert answer.usage.prompt_tokens < prompt_tokens(first)  # functions are a part of the prompt


def test_text_needs_no_call(client: openai.OpenAI) -> None:
    bias = {"30": -100, "93": -100}  # no < or {
    asked = {**ASKED, "tool_choice": "auto", "max_tokens": 9, "logit_bias": bias}
    body = client.chat.completions.create(**asked).choices[0]
    text = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(**asked, stream=True)
    )
    assert body.message.tool_calls is None
    assert (body.message.content or "") == text


def test_the_platforms_path(server: ServerProcess) -> None:
    url = f"{server.url}/serving-endpoints/{MODEL_ID}/invocations"
    body = {key: value for key, value in ASKED.items() if key != "model"}
    answer = httpx.post(url, json=body, timeout=30).json()
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
