"""The answers of /v1/chat/completions."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dropless.engine.output import TextDelta
from dropless.server.answer import Answer, Envelope
from dropless.server.generation import Choice, Generation
from dropless.server.logprobs import TokenNames
from dropless.text.tool_calls import CallPiece

_encode = msgspec.json.encode


Entries = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Call:
    call_id: str
    name: str
    arguments: list[str] = field(default_factory=list)  # JSON, as it came

    def body(self, arguments: str) -> dict[str, Any]:
        function = {"name": self.name, "arguments": arguments}
        return {"id": self.call_id, "type": "function", "function": function}


class ChatAnswer(Answer[Entries]):
    """`logprobs` says whether the client asked for them. One that `may_call` functions has content
    null where it has no text."""

    body_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(
        self,
        generation: Generation,
        envelope: Envelope,
        names: TokenNames,
        *,
        logprobs: bool,
        may_call: bool,
    ) -> None:
        super().__init__(generation, envelope)
        self._names = names
        self._logprobs = logprobs
        self._no_text = None if may_call else ""
        self._opened: set[int] = set()  # choices whose first chunk, with the role, is out
        self._texts: list[list[str]] = [[] for _ in generation.choices]
        self._entries: list[Entries] = [[] for _ in generation.choices]
        self._finish_reasons: dict[int, str] = {}
        self._calls: list[list[_Call]] = [[] for _ in generation.choices]

    def _collect(self, choice: Choice, delta: TextDelta) -> Entries:
        self._texts[choice.index].append(delta.text)
        calls = self._calls[choice.index]
        for piece in delta.calls:
            if piece.name is not None:
                calls.append(_Call(f"call_{secrets.token_hex(12)}", piece.name))
            calls[piece.index].arguments.append(piece.arguments)
        if delta.finish_reason is not None:
            self._finish_reasons[choice.index] = delta.finish_reason
        if not self._logprobs or not delta.logprobs:
            return []
        entries = [self._names.chat_entry(entry) for entry in delta.logprobs]
        self._entries[choice.index] += entries
        return entries

    def _chunk(self, choice: Choice, delta: TextDelta, news: Entries) -> bytes:
        index = choice.index
        events = b""
        if index not in self._opened:
            self._opened.add(index)
            begun = {"role": "assistant", "content": self._no_text, "refusal": None}
            events = self._delta_event(index, _encode(begun))
        if delta.text or news:
            content = b'{"content":' + _encode(delta.text) + b"}"
            logprobs = _encode(_content(news)) if self._logprobs else b"null"
            events += self._delta_event(index, content, logprobs=logprobs)
        for piece in delta.calls:
            events += self._call_events(index, piece)
        if delta.finish_reason is not None:
            events += self._delta_event(index, b"{}", finish_reason=_encode(delta.finish_reason))
        return events

    def _call_events(self, index: int, piece: CallPiece) -> bytes:
        """A call begins with a chunk that has its name, and empty arguments."""
        events = b""
        if piece.name is not None:
            begun = self._calls[index][piece.index].body("")
            delta = {"tool_calls": [{"index": piece.index, **begun}]}
            events = self._delta_event(index, _encode(delta))
        if piece.arguments:
            function = {"arguments": piece.arguments}
            delta = {"tool_calls": [{"index": piece.index, "function": function}]}
            events += self._delta_event(index, _encode(delta))
        return events

    def _delta_event(
        self, index: int, delta: bytes, *, logprobs: bytes = b"null", finish_reason: bytes = b"null"
    ) -> bytes:
        return self._event(
            b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}'
            % (index, delta, logprobs, finish_reason)
        )

    def _choice(self, choice: Choice) -> dict[str, Any]:
        index = choice.index
        text = "".join(self._texts[index]) or self._no_text
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._calls[index]:
            message["tool_calls"] = [
                call.body("".join(call.arguments)) for call in self._calls[index]
            ]
        entry = {
            "index": index,
            "message": message,
            "logprobs": _content(self._entries[index]) if self._logprobs else None,
            "finish_reason": self._finish_reasons.get(index),
        }
        if choice.prompt_logprobs is not None:
            entry["prompt_logprobs"] = self._names.prompt_entries(choice.prompt_logprobs)
        return entry


def _content(entries: Entries) -> dict[str, Any]:
    return {"content": entries, "refusal": None}
