"""The texts of a request that reach the model, and a request with other texts in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from dropless.errors import InvalidRequestError
from dropless.server.protocol import ChatBody, CompletionBody, GenerationBody

B = TypeVar("B", bound=GenerationBody)

# A message of fewer words may only make sense behind the one before: "And the second one?"
TOPIC_WORDS = 6


def texts_of(body: GenerationBody) -> list[str]:
    """Every message, whoever is said to have written it, or every prompt and the suffix.

    Raises:
        InvalidRequestError: a prompt is given as token ids, which cannot be judged.
    """
    if isinstance(body, ChatBody):
        return [message.content for message in body.messages]
    assert isinstance(body, CompletionBody)
    texts = [prompt for prompt in body.prompts if isinstance(prompt, str)]
    if len(texts) < len(body.prompts):
        raise InvalidRequestError(
            "a prompt of token ids cannot be judged by guardrails; send it as text", param="prompt"
        )
    return [*texts, body.suffix] if body.suffix else texts


def topic_text(body: GenerationBody) -> str:
    """What the request is about: the last thing that the user said, with the one before if it is
    short; or the prompts."""
    if not isinstance(body, ChatBody):
        return "\n".join(texts_of(body))
    said = [message.content for message in body.messages if message.role == "user"]
    last = said[-2:] if said and len(said[-1].split()) < TOPIC_WORDS else said[-1:]
    return "\n".join(last)


def with_texts(body: B, texts: Sequence[str]) -> B:
    """A copy of the body with these in place of those of `texts_of`."""
    if isinstance(body, CompletionBody):
        count = len(body.prompts)
        suffix = texts[count] if body.suffix else body.suffix
        return body.model_copy(update={"prompt": list(texts[:count]), "suffix": suffix})
    assert isinstance(body, ChatBody)
    messages = [
        message.model_copy(update={"content": text})
        for message, text in zip(body.messages, texts, strict=True)
    ]
    return body.model_copy(update={"messages": messages})


def anonymized(body: GenerationBody, texts: Sequence[str]) -> list[Any]:
    """The masked texts in the shape that they came in."""
    if isinstance(body, ChatBody):
        pairs = zip(body.messages, texts, strict=True)
        return [{"role": message.role, "content": text} for message, text in pairs]
    return list(texts)


def anonymized_answer(body: GenerationBody, text: str) -> list[Any]:
    """The masked text of an answer in the shape of the request."""
    return [{"role": "assistant", "content": text}] if isinstance(body, ChatBody) else [text]
