"""The texts of a request that reach the model, and a request with other texts in their place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from dropless.encoder.messages import Entity
from dropless.errors import InvalidRequestError
from dropless.server.chat_messages import CallBody, ChatMessage
from dropless.server.guardrails.findings import masked
from dropless.server.guardrails.json_text import JsonText, arguments_text, masked_arguments
from dropless.server.protocol import ChatBody, CompletionBody, GenerationBody
from dropless.server.tools.definitions import ToolBody

B = TypeVar("B", bound=GenerationBody)

# A message of fewer words may only make sense behind the one before: "And the second one?"
TOPIC_WORDS = 6


def texts_of(body: GenerationBody) -> list[str]:
    """Every message, whoever is said to have written it, with its calls, and every function that
    the model is told of; or every prompt and the suffix.

    Raises:
        InvalidRequestError: a prompt is given as token ids, which cannot be judged.
    """
    if isinstance(body, ChatBody):
        texts = []
        for message in body.messages:
            texts.append(message.text)
            texts += [arguments_text(call.function.arguments).text for call in message.calls]
        return [*texts, *(_tool_text(tool).text for tool in _offered(body))]
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
    said = [message.text for message in body.messages if message.role == "user"]
    last = said[-2:] if said and len(said[-1].split()) < TOPIC_WORDS else said[-1:]
    return "\n".join(last)


def with_masks(body: B, found: Sequence[Sequence[Entity]]) -> B:
    """A copy of the body with these entities, of each of the texts of `texts_of`, masked."""
    entities = iter(found)
    if isinstance(body, ChatBody):
        messages = [_masked_message(message, entities) for message in body.messages]
        changed: dict[str, Any] = {"messages": messages}
        if _offered(body):
            changed["tools"] = [_masked_tool(tool, next(entities)) for tool in _offered(body)]
        return body.model_copy(update=changed)
    assert isinstance(body, CompletionBody)
    prompts = [masked(prompt, next(entities)) for prompt in body.prompts if isinstance(prompt, str)]
    suffix = masked(body.suffix, next(entities)) if body.suffix else body.suffix
    return body.model_copy(update={"prompt": prompts, "suffix": suffix})


def anonymized(body: GenerationBody) -> list[Any]:
    """What a masked body says, in the shape that it came in."""
    if not isinstance(body, ChatBody):
        return texts_of(body)
    told: list[dict[str, Any]] = []
    for message in body.messages:
        told.append({"role": message.role, "content": message.content})
        if message.calls:
            told[-1]["tool_calls"] = [call.model_dump(exclude={"index"}) for call in message.calls]
    return told


def anonymized_answer(body: GenerationBody, text: str) -> list[Any]:
    """The masked text of an answer in the shape of the request."""
    return [{"role": "assistant", "content": text}] if isinstance(body, ChatBody) else [text]


def _offered(body: ChatBody) -> Sequence[ToolBody]:
    use = body.tool_use()
    return [] if use is None else use.offered


def _tool_text(tool: ToolBody) -> JsonText:
    return JsonText(tool.for_template()["function"])


def _masked_message(message: ChatMessage, found: Iterator[Sequence[Entity]]) -> ChatMessage:
    content = masked(message.text, next(found))
    calls = [_masked_call(call, next(found)) for call in message.calls]
    return message.model_copy(
        update={
            "content": message.content and content,
            "tool_calls": calls or message.tool_calls,
        }
    )


def _masked_call(call: CallBody, entities: Sequence[Entity]) -> CallBody:
    written = call.function.arguments
    arguments = masked_arguments(written, arguments_text(written), entities)
    function = call.function.model_copy(update={"arguments": arguments})
    return call.model_copy(update={"function": function})


def _masked_tool(tool: ToolBody, entities: Sequence[Entity]) -> ToolBody:
    if not entities:
        return tool
    told = _tool_text(tool).masked(entities)
    changed = {key: told[key] for key in ("description", "parameters") if key in told}
    return tool.model_copy(update={"function": tool.function.model_copy(update=changed)})
