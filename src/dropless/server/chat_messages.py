"""The messages of a chat as clients send them, with calls of functions and their results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from dropless.errors import InvalidRequestError
from dropless.server.strict_body import StrictBody
from dropless.server.tools.definitions import check_name
from dropless.server.unsupported_fields import refuse_unsupported

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_DEPTH = 64  # of a call's arguments


def _joined_text(content: Any) -> Any:
    """Content as one string: OpenAI also allows a list of parts, of which only text is served."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise InvalidRequestError(
                f"a content part is of type {kind!r}; this model reads text only: send parts "
                '{"type": "text", "text": "..."} or a plain string',
                param="messages",
            )
        texts.append(part["text"])
    return "".join(texts)


class CalledFunction(StrictBody):
    name: str
    arguments: str  # JSON, of an object; "" is an empty one

    @model_validator(mode="after")
    def _check_fields(self) -> CalledFunction:
        refuse_unsupported(self.model_extra or {}, where="messages")
        check_name(self.name, "messages")
        parsed_arguments(self.arguments)
        return self


class CallBody(StrictBody):
    """A call that the assistant made. `index` is what streams have beside it."""

    id: str
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> CallBody:
        refuse_unsupported(self.model_extra or {}, where="messages")
        return self


def parsed_arguments(arguments: str) -> dict[str, Any]:
    """Raises InvalidRequestError: they are no JSON object, or one that nests too deep."""
    shown = f"{arguments[:60]!r}{'...' if len(arguments) > 60 else ''}"
    try:
        value = json.loads(arguments or "{}", parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(
            f"the arguments of a call in messages are no JSON: {shown}", param="messages"
        ) from error
    if not isinstance(value, dict):
        raise InvalidRequestError(
            f"the arguments of a call in messages must be a JSON object, not {shown}",
            param="messages",
        )
    if _depth_exceeds(value, MAX_DEPTH):
        raise InvalidRequestError(
            f"the arguments of a call in messages nest deeper than {MAX_DEPTH}: {shown}",
            param="messages",
        )
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _depth_exceeds(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        inner: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                inner += part.values()
            elif isinstance(part, list):
                inner += part
        if not inner:
            return False
        level = inner
    return True


class ChatMessage(StrictBody):
    """One message. An assistant's may have calls in place of content; a tool's is the result of
    one. `name` is accepted and not shown to the model."""

    role: str
    content: Annotated[str | None, BeforeValidator(_joined_text)] = None
    name: str | None = None
    tool_calls: list[CallBody] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> ChatMessage:
        if self.role not in ROLES:
            raise InvalidRequestError(
                f"a message has the role {self.role!r}; use one of {', '.join(ROLES)}",
                param="messages",
            )
        refuse_unsupported(self.model_extra or {}, where="messages")
        return self

    @property
    def text(self) -> str:
        return self.content or ""

    @property
    def calls(self) -> list[CallBody]:
        return self.tool_calls or []


def check_messages(messages: Sequence[ChatMessage]) -> None:
    """Raises InvalidRequestError: a message stands where it may not, or lacks a part."""
    if not messages:
        raise InvalidRequestError("messages is empty; send at least one message", param="messages")
    made: set[str] = set()
    for i, message in enumerate(messages):
        problem = _problem(message, is_first=i == 0, made=made)
        if problem is not None:
            raise InvalidRequestError(f"messages[{i}] {problem}", param="messages")
        made.update(call.id for call in message.calls)


def _problem(message: ChatMessage, *, is_first: bool, made: set[str]) -> str | None:
    role = message.role
    if role in ("system", "developer") and not is_first:
        return f"is a {role} message; only the first message may be one: put all instructions there"
    if message.calls and role != "assistant":
        return f"is a {role} message with tool_calls, which only an assistant message may have"
    if message.content is None and not message.calls:
        return f"is a {role} message without content" + (
            "; it needs content or tool_calls" if role == "assistant" else ""
        )
    if role != "tool":
        return None
    if message.tool_call_id is None:
        return "is a tool message without tool_call_id, the id of the call that it answers"
    if message.tool_call_id not in made:
        return (
            f"has the tool_call_id {message.tool_call_id[:80]!r}; no assistant message before it "
            "has a call of this id in its tool_calls"
        )
    return None


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The messages as chat templates know them: `developer` is the newer name of `system`, the
    arguments of calls are mappings, and results stand in the order of their calls, for many
    templates do not say which is whose."""
    made: dict[str, tuple[int, str]] = {}  # by the id of a call: its place, its function's name
    written: list[dict[str, Any]] = []
    results: list[tuple[int, dict[str, Any]]] = []
    for message in messages:
        if message.role == "tool":
            place, name = made[message.tool_call_id or ""]
            told = {"role": "tool", "name": name, "content": message.text}
            results.append((place, {**told, "tool_call_id": message.tool_call_id}))
            continue
        written += _in_order(results)
        results = []
        role = "system" if message.role == "developer" else message.role
        written.append({"role": role, "content": message.text})
        if message.calls:
            written[-1]["tool_calls"] = [_template_call(call) for call in message.calls]
        for call in message.calls:
            made[call.id] = len(made), call.function.name
    return written + _in_order(results)


def _in_order(results: Sequence[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [result for _, result in sorted(results, key=lambda placed: placed[0])]


def _template_call(call: CallBody) -> dict[str, Any]:
    arguments = parsed_arguments(call.function.arguments)
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}
