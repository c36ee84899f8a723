"""Conversations out of logged calls: to train on, to evaluate with."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from dropless.tables.table_name import TableName

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said, the answer last, with calls of functions and their results. Tokens,
    `finish_reason` and `tools`, the functions that could be called, are of the answer's call."""

    request_id: str
    request_time: datetime.datetime
    requester: str | None
    messages: list[Message]
    finish_reason: str | None
    total_tokens: int | None
    tools: list[dict[str, Any]] | None = None

    def body(self) -> dict[str, Any]:
        """As training programs read it: `messages`, and `tools` if there were any."""
        tools = {} if self.tools is None else {"tools": self.tools}
        return {"messages": self.messages, **tools}

    @property
    def is_whole(self) -> bool:
        """Whether the answer ended by itself, and was not cut off."""
        return self.finish_reason in ("stop", "tool_calls")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which calls to take. None: whatever. `where` is SQL over the table's columns, `cut_off`:
    also answers that did not end by themselves."""

    status_code: int | None = 200
    requester: str | None = None
    since: datetime.date | None = None
    until: datetime.date | None = None  # this day too
    min_tokens: int | None = None
    max_tokens: int | None = None
    where: str | None = None
    cut_off: bool = False

    def sql(self, name: TableName) -> tuple[str, list[object]]:
        """The calls but for their tokens, the oldest first, and the query's parameters."""
        terms: list[str] = ["request IS NOT NULL", "response IS NOT NULL"]
        parameters: list[object] = []
        for term, value in (
            ("status_code = $", self.status_code),
            ("requester = $", self.requester),
            ("request_date >= $", self.since),
            ("request_date <= $", self.until),
        ):
            if value is not None:
                parameters.append(value)
                terms.append(f"{term}{len(parameters)}")
        if self.where is not None:
            terms.append(f"({self.where})")
        sql = (
            "SELECT databricks_request_id, request_time, requester, request, response "
            f'FROM "{name}" WHERE {" AND ".join(terms)} '
            "ORDER BY request_time, databricks_request_id"
        )
        return sql, parameters

    def takes(self, conversation: Conversation) -> bool:
        """What SQL does not say: how the answer ended, and tokens. A conversation of unknown
        length is wanted only if no length is."""
        if not (self.cut_off or conversation.is_whole):
            return False
        if self.min_tokens is None and self.max_tokens is None:
            return True
        tokens = conversation.total_tokens
        if tokens is None:
            return False
        return (self.min_tokens or 0) <= tokens and (
            self.max_tokens is None or tokens <= self.max_tokens
        )


def read_conversation(
    request_id: str,
    request_time: datetime.datetime,
    requester: str | None,
    request: str,
    response: str,
) -> Conversation | None:
    """The conversation of one call: its messages and its first answer. None if it was no chat, or
    has no answer."""
    try:
        asked = msgspec.json.decode(request, type=_Request)
        answered = msgspec.json.decode(response, type=_Response)
    except msgspec.MsgspecError:
        return None
    if not asked.messages or not answered.choices:
        return None
    choice = answered.choices[0]
    answer = {key: value for key, value in choice.message.items() if value is not None}
    usage = answered.usage or {}
    return Conversation(
        request_id,
        request_time,
        requester,
        [_plain(message) for message in (*asked.messages, answer)],
        choice.finish_reason,
        usage.get("total_tokens"),
        asked.tools or None,
    )


def without_repetitions(read: Callable[[], Iterable[Conversation]]) -> Iterator[Conversation]:
    """Each conversation once, and none that goes on in another one: a chat of three questions is
    logged as three calls, of which the last has everything. `read` is called twice, so that only
    keys are held in memory."""
    beginnings = {key for conversation in read() for key in _keys(conversation.messages[:-1])}
    seen = set()
    for conversation in read():
        *_, key = _keys(conversation.messages)
        if key not in beginnings and key not in seen:
            seen.add(key)
            yield conversation


def share_of(conversation: Conversation) -> float:
    """A number from 0 up to 1 by which to split conversations: always the same for what comes
    before the answer, so that two answers to the same do not come into different parts."""
    *_, key = _keys(conversation.messages[:-1])
    return int.from_bytes(key[:8]) / 2**64


class _Choice(msgspec.Struct):
    message: Message
    finish_reason: str | None = None


class _Request(msgspec.Struct):
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


class _Response(msgspec.Struct):
    choices: list[_Choice]
    usage: dict[str, Any] | None = None


def _plain(message: Message) -> Message:
    """With a text in place of a list of parts that are all texts."""
    content = message.get("content")
    if isinstance(content, list) and all(part.get("type") == "text" for part in content):
        return {**message, "content": "".join(part["text"] for part in content)}
    return message


def _keys(messages: Iterable[Message]) -> Iterator[bytes]:
    """A key of each beginning of a conversation: after each of its messages."""
    digest = hashlib.blake2b(digest_size=16)
    for message in messages:
        said = {key: message.get(key) for key in ("role", "content", "tool_calls")}
        digest.update(msgspec.json.encode(said, order="sorted"))
        yield digest.digest()
