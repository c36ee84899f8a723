"""Which texts of a request are judged, and put back."""

from __future__ import annotations

import json
import re

import pytest

from dropless.encoder.messages import Entity
from dropless.errors import InvalidRequestError
from dropless.server.guardrails.texts import anonymized, texts_of, topic_text, with_masks
from dropless.server.protocol import ChatBody, CompletionBody

CHAT = ChatBody.model_validate(
    {
        "model": "m",
        "temperature": 0.5,
        "messages": [
            {"role": "system", "content": "rules"},
            {"role": "user", "content": [{"type": "text", "text": "How do I bake bread?"}]},
            {"role": "assistant", "content": "slowly"},
            {"role": "user", "content": "And cake?"},
        ],
    }
)


def test_every_message_of_a_chat() -> None:
    assert texts_of(CHAT) == ["rules", "How do I bake bread?", "slowly", "And cake?"]
    other = with_masks(CHAT, [[], [Entity(14, 19, "FOOD")], [], [Entity(4, 8, "FOOD")]])
    assert texts_of(other) == ["rules", "How do I bake <FOOD>?", "slowly", "And <FOOD>?"]
    assert (other.temperature, [m.role for m in other.messages]) == (
        0.5,
        ["system", "user", "assistant", "user"],
    )
    assert texts_of(CHAT)[3] == "And cake?"
    assert anonymized(other)[3] == {"role": "user", "content": "And <FOOD>?"}


def test_every_prompt_and_the_suffix() -> None:
    for fields, texts in (
        ({"prompt": ["one", "two"]}, ["one", "two"]),
        ({"prompt": "one", "suffix": "end"}, ["one", "end"]),
    ):
        body = CompletionBody.model_validate({"model": "m", **fields})
        assert texts_of(body) == texts
        other = with_masks(body, [[Entity(0, len(text), "WORD")] for text in texts])
        assert texts_of(other) == anonymized(other) == ["<WORD>"] * len(texts)


def test_token_ids_are_refused() -> None:
    body = CompletionBody.model_validate({"model": "m", "prompt": [[1, 2], [3]]})
    with pytest.raises(InvalidRequestError, match="token ids cannot be judged"):
        texts_of(body)


def test_the_topic_of_a_short_question_is_in_the_one_before() -> None:
    assert topic_text(CHAT) == "How do I bake bread?\nAnd cake?"
    question = {"role": "user", "content": "How do I compile a program in C?"}
    longer = ChatBody.model_validate({"model": "m", "messages": [question]})
    assert topic_text(longer) == "How do I compile a program in C?"
    alone = ChatBody.model_validate(
        {"model": "m", "messages": [{"role": "system", "content": "only rules"}]}
    )
    assert topic_text(alone) == ""


def test_calls_results_and_functions_are_texts_too() -> None:
    call = {"name": "pay", "arguments": '{"card": 4111, "to": ["Ann"], "note": "for Ann"}'}
    tool = {"name": "pay", "description": "Ask Ann", "parameters": {"title": "pays Ann"}}
    body = ChatBody.model_validate(
        {
            "model": "m",
            "messages": [
                {"role": "user", "content": "pay"},
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "c", "type": "function", "function": call}],
                },
                {"role": "tool", "tool_call_id": "c", "content": "paid Ann"},
            ],
            "tools": [{"type": "function", "function": tool}],
        }
    )
    texts = texts_of(body)
    assert texts[:4] == ["pay", "", "card: 4111\nto:\nAnn\nnote: for Ann\n", "paid Ann"]
    assert "Ask Ann" in texts[4]
    found = [
        [Entity(m.start(), m.end(), "X") for m in re.finditer("4111|Ann", text)] for text in texts
    ]
    other = with_masks(body, found)
    assert not any("Ann" in text or "4111" in text for text in texts_of(other))
    assert texts_of(other)[2] == "card: <X>\nto:\n<X>\nnote: for <X>\n"
    assert other.tools is not None
    assert other.tools[0].function.description == "Ask <X>"
    assert anonymized(other)[1]["content"] is None
    masked = anonymized(other)[1]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(masked) == {"card": "<X>", "to": ["<X>"], "note": "for <X>"}
