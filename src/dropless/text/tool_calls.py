"""How a model calls functions in its text, and the calls read from it while it comes.

The form is Hermes', which Qwen and others were trained with:

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

A grammar holds the model to it (`tool_grammar.py`), so reading needs no repair.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

OPEN = "<tool_call>"
CLOSE = "</tool_call>"

# Up to the arguments. A model may put white space behind the mark, or none.
_HEAD = re.compile(r'\s*\{"name": "([a-zA-Z0-9_-]+)", "arguments": ')
_MARKS_OF_DEPTH = re.compile(r'["\\{}\[\]]')


@dataclass(frozen=True, slots=True)
class CallPiece:
    """What became known of one call of an answer. Its first piece has the `name`, all of them
    joined the `arguments` as JSON; with the one that has `ended` they are complete."""

    index: int  # among the calls of the answer
    name: str | None = None
    arguments: str = ""
    ended: bool = False


class CallReader:
    """Parts an answer's text, as it comes, into what is said and what is called.

    What could be the beginning of a mark is held back, and so is white space before it. Joined,
    text and calls are the same however the answer is cut into deltas.
    """

    def __init__(self, *, text_first: bool) -> None:
        """`text_first` says that text may stand before the calls; without it there is only what
        begins with a mark."""
        self._text_first = text_first
        self._held = ""  # not understood yet
        self._is_inside = False  # behind a mark, up to the end of the arguments
        self._arguments: _Arguments | None = None
        self._num_calls = 0

    @property
    def is_text(self) -> bool:
        """Whether no mark has come, and text may go on."""
        return self._text_first

    @property
    def num_calls(self) -> int:
        return self._num_calls

    @property
    def is_inside(self) -> bool:
        """Whether a call has begun and not ended."""
        return self._is_inside

    def push(self, text: str) -> tuple[str, list[CallPiece]]:
        """The text that may be shown now, and what became known of calls."""
        self._held += text
        shown = ""
        if self._text_first:
            shown = self._take_text()
        return shown, [] if self._text_first else list(self._take_calls())

    def finish(self) -> str:
        """What was held back of the text, when the answer has ended and no call follows."""
        held, self._held = self._held, ""
        return held if self._text_first else ""

    def _take_text(self) -> str:
        at = self._held.find(OPEN)
        if at >= 0:
            self._text_first = False
            text, self._held = self._held[:at].rstrip(), self._held[at:]
            return text
        keep = len(self._held) - _length_of_beginning(self._held)
        keep = len(self._held[:keep].rstrip())
        text, self._held = self._held[:keep], self._held[keep:]
        return text

    def _take_calls(self) -> Iterator[CallPiece]:
        while True:
            if self._arguments is not None:
                taken = self._arguments.take(self._held)
                self._held = self._held[len(taken) :]
                ended = self._arguments.ended
                if taken:
                    yield CallPiece(self._num_calls - 1, None, taken, ended)
                if not ended:
                    return
                self._arguments, self._is_inside = None, False
            if not self._is_inside:
                at = self._held.find(OPEN)
                if at < 0:
                    return
                self._held, self._is_inside = self._held[at + len(OPEN) :], True
            head = _HEAD.match(self._held)
            if head is None:
                return
            self._held, self._arguments = self._held[head.end() :], _Arguments()
            self._num_calls += 1
            yield CallPiece(self._num_calls - 1, head[1])


class _Arguments:
    """Finds the end of a JSON object."""

    def __init__(self) -> None:
        self.ended = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def take(self, text: str) -> str:
        """How much of the text belongs to it."""
        start = 0
        if self._escaped and text:
            self._escaped, start = False, 1
        while (mark := _MARKS_OF_DEPTH.search(text, start)) is not None:
            start = mark.end()
            if mark[0] == "\\":  # in a string: nothing else has one
                if start == len(text):
                    self._escaped = True
                start += 1
            elif mark[0] == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                self._depth += 1 if mark[0] in "{[" else -1
                if self._depth == 0:
                    self.ended = True
                    return text[:start]
        return text


def _length_of_beginning(text: str) -> int:
    """The length of the longest end of a text that is the beginning of a mark."""
    sizes = range(min(len(OPEN) - 1, len(text)), 0, -1)
    return next((size for size in sizes if OPEN.startswith(text[-size:])), 0)
