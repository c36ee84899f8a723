"""What both endpoints' answers have in common: chunks of a stream, or one body at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from dropless.engine.output import TextDelta
from dropless.server.asgi import event
from dropless.server.generation import Choice, Generation, Usage

_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every chunk and body of one answer repeats, and which extras the client asked for."""

    response_id: str
    created: int  # time.time() seconds
    model: str
    include_usage: bool  # in a stream; a body always has it
    include_timings: bool


class Answer(ABC):
    """Follows one generation and writes it as OpenAI does. Use `chunks` or `body`, once."""

    body_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, generation: Generation, envelope: Envelope) -> None:
        self._generation = generation
        self._envelope = envelope
        # Chunks are put together from bytes: encoding the whole object per token costs more than
        # all else that the HTTP process does for it.
        head = msgspec.json.encode(self._fields(self.chunk_object)).removesuffix(b"}")
        self._chunk_head = b"data: " + head + b',"choices":['
        usage = b',"usage":null' if envelope.include_usage else b""
        self._chunk_tail = b"]" + usage + b"}\n\n"

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events up to [DONE]. Each element is what arrived together."""
        async with aclosing(self._generation.deltas()) as deltas:
            async for choice, delta in deltas:
                chunk = self._chunk(choice, delta)
                if chunk:
                    yield chunk
        yield self._last_events()

    async def body(self) -> dict[str, Any]:
        """The answer as one object, when all choices have ended."""
        async with aclosing(self._generation.deltas()) as deltas:
            async for choice, delta in deltas:
                self._collect(choice, delta)
        choices = [self._choice(choice) for choice in self._generation.choices]
        body = {
            **self._fields(self.body_object),
            "choices": choices,
            "usage": self._usage().body(),
        }
        if self._envelope.include_timings:
            body["timings"] = self._generation.timings()
        return body

    @abstractmethod
    def _chunk(self, choice: Choice, delta: TextDelta) -> bytes:
        """The events that tell of this delta; empty if there is nothing to tell yet."""

    @abstractmethod
    def _collect(self, choice: Choice, delta: TextDelta) -> None:
        """Keep the delta for `_choice`."""

    @abstractmethod
    def _choice(self, choice: Choice) -> dict[str, Any]:
        """The finished choice as an element of the body's `choices`."""

    def _event(self, choice_json: bytes) -> bytes:
        """A chunk with one element of `choices`, given as JSON."""
        return self._chunk_head + choice_json + self._chunk_tail

    def _last_events(self) -> bytes:
        extra: dict[str, Any] = {}
        if self._envelope.include_usage:
            extra["usage"] = self._usage().body()
        if self._envelope.include_timings:
            extra["timings"] = self._generation.timings()
        if not extra:
            return _DONE
        return event({**self._fields(self.chunk_object), "choices": [], **extra}) + _DONE

    def _usage(self) -> Usage:
        return self._generation.usage()

    def _fields(self, object_name: str) -> dict[str, Any]:
        return {
            "id": self._envelope.response_id,
            "object": object_name,
            "created": self._envelope.created,
            "model": self._envelope.model,
        }
