"""What requests may say of functions."""

from __future__ import annotations

from typing import Any

import pytest

from dropless.engine.sampling_params import GrammarSpec
from dropless.errors import InvalidRequestError
from dropless.server.protocol import ChatBody
from dropless.text.tool_grammar import ToolGrammar

USER = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
F = {"type": "function", "function": {"name": "f", "description": "does f", "parameters": SCHEMA}}
G = {"type": "function", "function": {"name": "g", "strict": True}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "2"}


def chat(**fields: Any) -> ChatBody:
    return ChatBody.model_validate({"model": "m", "messages": [USER], **fields})


def grammar(**fields: Any) -> ToolGrammar:
    spec = chat(**fields).sampling_params().grammar
    assert spec is not None
    assert spec.kind == "tool_calls"
    return ToolGrammar.decode(spec.text)


@pytest.mark.parametrize(
    ("fields", "names", "text_first", "parallel"),
    [
        ({}, ["f", "g"], True, True),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, ["f", "g"], True, False),
        ({"tool_choice": "required", "parallel_tool_calls": True}, ["f", "g"], False, True),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, ["g"], False, False),
    ],
)
def test_what_an_answer_may_call(
    fields: dict[str, Any], names: list[str], text_first: bool, parallel: bool
) -> None:
    found = grammar(tools=[F, G], **fields)
    assert [function.name for function in found.functions] == names
    assert (found.text_first, found.parallel) == (text_first, parallel)
    assert found.functions[-1].strict
    assert found.functions[-1].schema["additionalProperties"] is False  # it takes no arguments


@pytest.mark.parametrize(
    ("parameters", "closed"),
    [
        ({"properties": {}}, True),
        (SCHEMA, True),
        ({}, False),
        ({"properties": {}, "additionalProperties": {"type": "string"}}, False),
        ({"properties": {}, "$ref": "#/$defs/a", "$defs": {"a": {}}}, False),
    ],
)
def test_a_function_has_the_parameters_that_it_lists(
    parameters: dict[str, Any], closed: bool
) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    schema = grammar(tools=[tool]).functions[0].schema
    assert schema == {
        "type": "object",
        **parameters,
        **({"additionalProperties": False} if closed else {}),
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tools": None, "tool_choice": "auto"},
        {"tools": [F], "tool_choice": "none"},
        {"parallel_tool_calls": False},
    ],
)
def test_nothing_to_call(fields: dict[str, Any]) -> None:
    body = chat(**fields, response_format={"type": "json_object"})
    assert body.tool_use() is None
    assert body.sampling_params().grammar == GrammarSpec("json_object")


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [F, F]}, "tools", "two functions called 'f'"),
    ({"tools": [named(f"f{i}") for i in range(33)]}, "tools", "33 functions; at most 32"),
    ({"tools": [named("a b")]}, "tools", "is called 'a b'"),
    ({"tools": [named("")]}, "tools", "is called ''"),
    ({"tools": [named("x" * 65)]}, "tools", "is called 'xxx"),
    ({"tools": [{**F, "colour": 1}]}, "tools", "unknown field 'colour'"),
    (
        {
            "tools": [
                {"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}
            ]
        },
        "tools",
        'of type "array"',
    ),
    ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
    ({"tool_choice": "any", "tools": [F]}, "tool_choice", "tool_choice must be"),
    ({"tool_choice": {"type": "function"}, "tools": [F]}, "tool_choice", "tool_choice must be"),
    ({"tool_choice": [], "tools": [F]}, "tool_choice", "tool_choice must be"),
    ({"tool_choice": named("g"), "tools": [F]}, "tool_choice", "'g', which is not among tools: f"),
    (
        {"tools": [F], "response_format": {"type": "json_object"}},
        "response_format",
        "tool_choice none",
    ),
    ({"tools": [F], "structured_outputs": {"regex": "a"}}, "structured_outputs", "and so do tools"),
]


@pytest.mark.parametrize(("fields", "param", "message"), REFUSED)
def test_refused_by_name(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        chat(**fields).sampling_params()
    assert caught.value.param == param


def call(arguments: str) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{**CALL, "function": function}]}


REFUSED_MESSAGES: list[tuple[list[dict[str, Any]], str]] = [
    ([{"role": "user"}], r"messages\[0\] is a user message without content"),
    ([{"role": "assistant", "tool_calls": []}], "needs content or tool_calls"),
    ([{**USER, "tool_calls": [CALL]}], "which only an assistant message may have"),
    ([{"role": "tool", "content": "2"}], "without tool_call_id"),
    ([RESULT], "the tool_call_id 'c1'; no assistant message before it"),
    ([RESULT, CALLED], "the tool_call_id 'c1'"),
    ([USER, CALLED, {**RESULT, "tool_call_id": "c2"}], r"messages\[2\] has the tool_call_id 'c2'"),
    ([USER, call('{"a": ')], "are no JSON: '{\"a\": '"),
    ([USER, call("[1]")], "must be a JSON object"),
    ([USER, call('{"a": NaN}')], "are no JSON"),
    ([USER, call('{"a":' * 70 + "1" + "}" * 70)], "nest deeper than 64"),
    ([USER, call('{"a":' * 9000 + "1" + "}" * 9000)], "are no JSON"),
    ([USER, call("1" * 5000)], "are no JSON"),
    ([{"role": "function", "content": "2"}], "role 'function'"),
]


@pytest.mark.parametrize(("messages", "problem"), REFUSED_MESSAGES)
def test_messages_out_of_place(messages: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(InvalidRequestError, match=problem) as caught:
        chat(messages=messages)
    assert caught.value.param == "messages"


def test_what_clients_send_back_of_an_answer() -> None:
    """As the OpenAI client dumps a message, and as streams are put together."""
    dumped = {**CALLED, "refusal": None, "annotations": [], "audio": None, "function_call": None}
    streamed = {"role": "assistant", "content": "", "tool_calls": [{**CALL, "index": 0}]}
    for message in (dumped, streamed):
        body = chat(messages=[USER, message, RESULT, {"role": "assistant", "content": "2"}])
        assert [call.id for call in body.messages[1].calls] == [CALL["id"]]
