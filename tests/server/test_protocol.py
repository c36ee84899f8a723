"""Bodies as clients send them, against the sampling parameters they must become."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dropless.engine.sampling_params import GrammarSpec, SamplingParams
from dropless.errors import InvalidRequestError
from dropless.server.chat_messages import template_messages
from dropless.server.errors import to_http_error
from dropless.server.protocol import ChatBody, CompletionBody

USER = {"role": "user", "content": "hi"}


def chat(**fields: Any) -> ChatBody:
    body = {"model": "m", "messages": [USER], **fields}
    return ChatBody.model_validate_json(json.dumps(body))


def completion(**fields: Any) -> CompletionBody:
    return CompletionBody.model_validate_json(json.dumps({"model": "m", "prompt": "hi", **fields}))


def test_nothing_given_means_openai_defaults() -> None:
    assert chat().sampling_params() == SamplingParams()
    assert completion().sampling_params() == SamplingParams(max_tokens=16)


def test_null_means_not_given() -> None:
    fields = dict.fromkeys(["temperature", "top_p", "n", "stop", "seed", "max_tokens", "logprobs"])
    assert chat(**fields).sampling_params() == SamplingParams()


def test_every_sampling_field_arrives() -> None:
    params = chat(
        temperature=0,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=-1.5,
        repetition_penalty=1.1,
        logit_bias={"12": -100, "7": 2.5},
        seed=-3,
        max_completion_tokens=9,
        min_tokens=2,
        stop=["a", "b"],
        stop_token_ids=[4],
        ignore_eos=True,
        logprobs=True,
        top_logprobs=3,
        prompt_logprobs=1,
    ).sampling_params()
    assert params == SamplingParams(
        temperature=0.0,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        presence_penalty=1.0,
        frequency_penalty=-1.5,
        repetition_penalty=1.1,
        logit_bias={12: -100.0, 7: 2.5},
        seed=-3,
        max_tokens=9,
        min_tokens=2,
        stop=("a", "b"),
        stop_token_ids=(4,),
        ignore_eos=True,
        logprobs=3,
        prompt_logprobs=1,
    )


def test_one_stop_string_needs_no_list() -> None:
    assert chat(stop="END").sampling_params().stop == ("END",)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("text", ["text"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_four_shapes_of_prompt(prompt: Any, expected: Any) -> None:
    assert completion(prompt=prompt).prompts == expected


@pytest.mark.parametrize("prompt", [None, [], [[]], 7, {"a": 1}, ["a", 1], [1, True], [1, "a"]])
def test_other_shapes_of_prompt_are_refused(prompt: Any) -> None:
    with pytest.raises(InvalidRequestError, match="prompt must be a string") as caught:
        completion(prompt=prompt)
    assert caught.value.param == "prompt"


def test_scoring_a_prompt_asks_for_its_logprobs() -> None:
    body = completion(echo=True, max_tokens=0, logprobs=2)
    assert body.prompt_only
    params = body.sampling_params()
    assert (params.max_tokens, params.logprobs, params.prompt_logprobs) == (1, 2, 2)
    assert completion(logprobs=2).sampling_params().prompt_logprobs is None


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = chat(messages=[{"role": "developer", "content": "be brief"}, {**USER, "content": parts}])
    assert template_messages(body.messages) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab"},
    ]


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, GrammarSpec("json_object")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": 1}}}},
            GrammarSpec("json_schema", '{"a": 1}'),
        ),
        ({"structured_outputs": {"regex": "a+"}}, GrammarSpec("regex", "a+")),
        ({"structured_outputs": {"choice": ["x", "y"]}}, GrammarSpec("choice", '["x", "y"]')),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, GrammarSpec("lark", 'start: "a"')),
        ({"structured_outputs": {"json": {"b": 2}}}, GrammarSpec("json_schema", '{"b": 2}')),
    ],
)
def test_constraints(fields: dict[str, Any], grammar: GrammarSpec | None) -> None:
    assert chat(**fields).sampling_params().grammar == grammar


HARMLESS = {
    "user": "u",
    "metadata": {"a": "b"},
    "store": True,
    "client_request_id": "c",
    "usage_context": {"project": "p"},
    "modalities": ["text"],
}


def test_fields_that_change_nothing_are_accepted() -> None:
    assert chat(**HARMLESS).sampling_params() == SamplingParams()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"extra_body": {"top_k": 4}}, "extra_body"),
    ({"temprature": 1}, "temprature"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "system", "content": "a"}] * 2}, "messages"),
    ({"messages": [USER, {"role": "system", "content": "late"}]}, "messages"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "messages"),
    (
        {"messages": [{**USER, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages",
    ),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
    ({"temperature": -1}, "temperature"),
    ({"stop": [""]}, "stop"),
    ({"seed": 2**64}, "seed"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "structured_outputs",
    ),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"xml": "a"}}, "structured_outputs"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat(**fields).sampling_params()
    assert caught.value.param == param


@pytest.mark.parametrize("n", [0, -1, 6])
def test_choices_out_of_range(n: int) -> None:
    with pytest.raises(InvalidRequestError, match="between 1 and 5"):
        chat(n=n).choices(5)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 3}, "best_of"),
        ({"suffix": "end", "echo": True}, "echo"),
        ({"prompt": ["a"] * 600, "n": 2}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 129}, "n"),
    ],
)
def test_refused_completions(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        completion(**fields)
    assert caught.value.param == param


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
field_names = st.sampled_from([*ChatBody.model_fields, *CompletionBody.model_fields, "other"])


@given(st.dictionaries(field_names, json_values, max_size=6))
def test_any_json_is_read_or_refused(fields: dict[str, Any]) -> None:
    """Whatever the values, the outcome is parameters or a client's error, never a failure."""
    for make in (chat, completion):
        try:
            make(**fields).sampling_params()
        except (InvalidRequestError, ValidationError) as error:
            http_error = to_http_error(error)
            assert http_error.status == 400
            assert http_error.message


@pytest.mark.parametrize(
    ("fields", "on"),
    [
        ({}, False),
        ({"enable_safety_mode": True}, True),
        ({"enable_safety_filter": True}, True),
        ({"enable_safety_mode": False, "extra_body": {"enable_safety_filter": True}}, True),
        ({"enable_safety_mode": None, "extra_body": {}}, False),
    ],
)
def test_safety_mode(fields: dict[str, Any], on: bool) -> None:
    assert chat(**fields).safety_mode is on
