"""Which texts of a request are judged, and put back."""

from __future__ import annotations

import pytest

from dropless.errors import InvalidRequestError
from dropless.server.guardrails.texts import anonymized, texts_of, topic_text, with_texts
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
    other = with_texts(CHAT, ["a", "b", "c", "d"])
    assert texts_of(other) == ["a", "b", "c", "d"]
    assert (other.temperature, [m.role for m in other.messages]) == (
        0.5,
        ["system", "user", "assistant", "user"],
    )
    assert texts_of(CHAT)[0] == "rules"
    assert anonymized(CHAT, ["a", "b", "c", "d"])[1] == {"role": "user", "content": "b"}


def test_every_prompt_and_the_suffix() -> None:
    for fields, texts in (
        ({"prompt": ["one", "two"]}, ["one", "two"]),
        ({"prompt": "one", "suffix": "end"}, ["one", "end"]),
    ):
        body = CompletionBody.model_validate({"model": "m", **fields})
        assert texts_of(body) == texts
        masked = [f"<{text}>" for text in texts]
        assert texts_of(with_texts(body, masked)) == masked
        assert anonymized(body, masked) == masked


def test_token_ids_are_refused() -> None:
    body = CompletionBody.model_validate({"model": "m", "prompt": [[1, 2], [3]]})
    with pytest.raises(InvalidRequestError, match="token ids cannot be judged"):
        texts_of(body)


def test_the_topic_of_a_short_question_is_in_the_one_before() -> None:
    assert topic_text(CHAT) == "How do I bake bread?\nAnd cake?"
    longer = with_texts(CHAT, ["r", "a", "b", "How do I compile a program in C?"])
    assert topic_text(longer) == "How do I compile a program in C?"
    alone = ChatBody.model_validate(
        {"model": "m", "messages": [{"role": "system", "content": "only rules"}]}
    )
    assert topic_text(alone) == ""
