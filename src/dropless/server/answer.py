"""What answers have in common: chunks of a stream, or one body at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from dropless.engine.output import TextDelta
from dropless.server.asgi import event
from dropless.server.generation import Choice, Deltas, Generation, Usage

_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every chunk and body of one answer repeats, and which extras the client asked for."""

    response_id: str
    created: int  # time.time() seconds
    model: str
    include_usage: bool  # in a stream; a body always has it
    include_timings: bool


N = TypeVar("N")  # what a delta adds, as one kind of answer keeps it


class Answer(ABC, Generic[N]):
    """Follows one generation and writes it as OpenAI does. Use `chunks` or `body`, once; what has
    come so far is `so_far` at any time, also after an error."""

    body_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, generation: Generation, envelope: Envelope) -> None:
        self.generation = generation
        self._envelope = envelope
        # Chunks are put together from bytes: encoding the whole object per token costs more than
        # all else that the HTTP process does for it.
        head = msgspec.json.encode(self._fields(self.chunk_object)).removesuffix(b"}")
        self._chunk_head = b"data: " + head + b',"choices":['
        usage = b',"usage":null' if envelope.include_usage else b""
        self._chunk_tail = b"]" + usage + b"}\n\n"

    async def chunks(self, deltas: Deltas) -> AsyncGenerator[bytes, None]:
        """Server-sent events up to [DONE]. Each element is what arrived together. `deltas` are
        the generation's own, or what is made of them on the way."""
        async with aclosing(deltas) as stream:
            async for choice, delta in stream:
                chunk = self._chunk(choice, delta, self._collect(choice, delta))
                if chunk:
                    yield chunk
        yield self._last_events()

    async def body(self, deltas: Deltas) -> dict[str, Any]:
        """The answer as one object, when all choices have ended."""
        async with aclosing(deltas) as stream:
            async for choice, delta in stream:
                self._collect(choice, delta)
        body = self.so_far()
        if self._envelope.include_timings and self.generation.begun:
            body["timings"] = self.generation.timings()
        return body

    def so_far(self) -> dict[str, Any]:
        """The object that the answer, streamed or not, stands for. A choice that has not ended
        has the finish reason null."""
        return {
            **self._fields(self.body_object),
            "choices": [self._choice(choice) for choice in self.generation.choices],
            "usage": self.usage().body(),
        }

    def usage(self) -> Usage:
        return self.generation.usage()

    @abstractmethod
    def _collect(self, choice: Choice, delta: TextDelta) -> N:
        """Keep for `_choice` what this delta adds, and return it."""

    @abstractmethod
    def _chunk(self, choice: Choice, delta: TextDelta, news: N) -> bytes:
        """The events that tell of it; empty if there is nothing to tell yet."""

    @abstractmethod
    def _choice(self, choice: Choice) -> dict[str, Any]:
        """The choice as an element of the body's `choices`."""

    def _event(self, choice_json: bytes) -> bytes:
        """A chunk with one element of `choices`, given as JSON."""
        return self._chunk_head + choice_json + self._chunk_tail

    def _last_events(self) -> bytes:
        extra: dict[str, Any] = {}
        if self._envelope.include_usage:
            extra["usage"] = self.usage().body()
        if self._envelope.include_timings and self.generation.begun:
            extra["timings"] = self.generation.timings()
        if not extra:
            return _DONE
        return event({**self._fields(self.chunk_object), "choices": [], **extra}) + _DONE

    def _fields(self, object_name: str) -> dict[str, Any]:
        return {
            "id": self._envelope.response_id,
            "object": object_name,
            "created": self._envelope.created,
            "model": self._envelope.model,
        }
