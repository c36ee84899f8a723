"""Calls of an answer that have come and are not judged yet: each waits until it is whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dropless.encoder.messages import Entity
from dropless.server.guardrails.json_text import JsonText, arguments_text, masked_arguments
from dropless.text.tool_calls import CallPiece


@dataclass(frozen=True, slots=True)
class HeldCall:
    index: int
    name: str
    arguments: str
    ended: bool  # else the answer was cut within it
    judged: JsonText

    def pieces(self, entities: Sequence[Entity]) -> list[CallPiece]:
        """What to show of it, with these entities masked."""
        arguments = masked_arguments(self.arguments, self.judged, entities)
        return [
            CallPiece(self.index, self.name),
            CallPiece(self.index, None, arguments, self.ended),
        ]


class HeldCalls:
    """Of one choice."""

    def __init__(self) -> None:
        self._name = ""
        self._arguments: list[str] = []
        self._open: int | None = None  # the index of a call that is not whole

    def take(self, pieces: Sequence[CallPiece], *, ended: bool) -> Iterator[HeldCall]:
        """The calls that are whole with these pieces; with the answer's last, also one that is
        not."""
        for piece in pieces:
            if piece.name is not None:
                self._open, self._name, self._arguments = piece.index, piece.name, []
            self._arguments.append(piece.arguments)
            if piece.ended:
                yield self._take(ended=True)
        if ended and self._open is not None:
            yield self._take(ended=False)

    def _take(self, *, ended: bool) -> HeldCall:
        assert self._open is not None
        index, self._open = self._open, None
        arguments = "".join(self._arguments)
        return HeldCall(index, self._name, arguments, ended, arguments_text(arguments))
