"""How a model calls functions in its text, and the calls read from it while it comes.

The form is Hermes', which Qwen and others were trained with; text may stand before it:

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

Some forget the marks. So an answer that begins with such an object, also in a code block, and names
a function that there is, calls it, too. From there on a grammar holds the model to the form
(`tool_matcher.py`): reading needs no repair.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import regex

OPEN = "<tool_call>"
CLOSE = "</tool_call>"
MAX_SPACES = 40  # between the parts of a call

_WS = rf"[ \t\r\n]{{0,{MAX_SPACES}}}"
# Up to the arguments.
_HEAD = re.compile(
    rf'{_WS}\{{{_WS}"name"{_WS}:{_WS}"([a-zA-Z0-9_-]+)"{_WS},{_WS}"arguments"{_WS}:{_WS}(?=\{{)'
)
_MARKS_OF_DEPTH = re.compile(r'["\\{}\[\]]')


def unmarked_call(names: Iterable[str]) -> str:
    """A regular expression for the beginning of an answer that calls one of these functions without
    a mark. Its group `call` is what belongs to the call."""
    name = "|".join(names)
    return rf'{_WS}(?:```(?:json)?{_WS})?(?P<call>\{{{_WS}"name"{_WS}:{_WS}"(?:{name})")'


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

    What could be the beginning of a call is held back, and so is white space before it. Joined,
    text and calls are the same however the answer is cut into deltas.
    """

    def __init__(self, names: Iterable[str], *, text_first: bool) -> None:
        """`names` are those of the functions. `text_first` says that text may stand before the
        calls; without it there is only what begins with a mark."""
        self.is_text = text_first  # no call has begun
        self.is_inside = False  # a call has begun and not ended
        self.num_calls = 0  # of which the name is known
        self._held = ""  # not understood yet
        self._unmarked = regex.compile(unmarked_call(names))
        self._at_start = True  # the answer may still begin with a call without mark
        self._has_marks = True
        self._arguments: _Arguments | None = None

    def push(self, text: str) -> tuple[str, list[CallPiece]]:
        """The text that may be shown now, and what became known of calls."""
        self._held += text
        shown = self._take_text() if self.is_text else ""
        return shown, [] if self.is_text else list(self._take_calls())

    def finish(self, *, cut: bool) -> str:
        """The text that was held back, when the answer has ended and no call follows. Of one that
        was `cut`, nothing that could have become a mark."""
        held, self._held = self._held, ""
        if not self.is_text:
            return ""
        return held[: len(held) - _length_of_beginning(held)] if cut else held

    def _take_text(self) -> str:
        if self._at_start:
            match = self._unmarked.match(self._held, partial=True)
            if match is not None and match.partial:
                return ""
            self._at_start = False
            if match is not None:
                self._held = self._held[match.start("call") :]
                self.is_text, self.is_inside, self._has_marks = False, True, False
                return ""
        end = self._held.find(OPEN)
        self.is_text = end < 0
        if end < 0:
            end = len(self._held) - _length_of_beginning(self._held)
        text = self._held[:end].rstrip()
        self._held = self._held[len(text) :]
        return text

    def _take_calls(self) -> Iterator[CallPiece]:
        while True:
            if self._arguments is not None:
                taken = self._arguments.take(self._held)
                self._held = self._held[len(taken) :]
                ended = self._arguments.ended
                if taken:
                    yield CallPiece(self.num_calls - 1, None, taken, ended)
                if not ended:
                    return
                self._arguments, self.is_inside = None, False
            if not self.is_inside:
                at = self._held.find(OPEN if self._has_marks else "{")
                if at < 0:
                    return
                begin = at + len(OPEN) if self._has_marks else at
                self._held, self.is_inside = self._held[begin:], True
            head = _HEAD.match(self._held)
            if head is None:
                return
            self._held, self._arguments = self._held[head.end() :], _Arguments()
            self.num_calls += 1
            yield CallPiece(self.num_calls - 1, head[1])


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
