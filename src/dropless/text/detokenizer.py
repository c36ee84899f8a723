"""Token ids to text while they are generated: whole characters only, stop strings held back."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from dropless.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """The text of a growing token sequence.

    All pushes and `finish` joined equal the decoding of all tokens, cut at the first stop string
    to be complete (the longest of those that end at the same place). A character is emitted once
    all its bytes are there, text that could be the start of a stop string once it no longer can.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        *,
        continues_text: bool = False,
    ) -> None:
        """`include_stop` leaves a found stop string at the end of the text. `continues_text` keeps
        the leading space of models that start every text with one, because the tokens continue a
        text (a plain completion) instead of beginning their own (an answer)."""
        self.stop_hit: str | None = None
        self._token_bytes = tokenizer.token_bytes
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._drop_space = tokenizer.leading_space and not continues_text
        self._bytes = b""  # the start of an unfinished character
        self._held = ""  # the possible start of a stop string

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that may be emitted now; "" once a stop string was found."""
        data = self._bytes + b"".join(map(self._token_bytes, token_ids))
        return self._emit(data, final=False)

    def finish(self) -> str:
        """What was held back, an unfinished character as U+FFFD. Nothing may be pushed later."""
        text = self._emit(self._bytes, final=True)
        rest, self._held = self._held, ""
        return text + rest

    def _emit(self, data: bytes, *, final: bool) -> str:
        if self.stop_hit is not None:
            return ""
        if self._drop_space and data:
            data = data.removeprefix(b" ")
            self._drop_space = False
        text, used = codecs.utf_8_decode(data, "replace", final)
        self._bytes = data[used:]
        if not self._stop:
            return text
        text = self._held + text
        end = self._find_stop(text)
        if end is not None:
            self._held, self._bytes = "", b""
            return text[:end]
        keep = len(text) - self._possible_stop(text)
        self._held = text[keep:]
        return text[:keep]

    def _find_stop(self, text: str) -> int | None:
        """Where to cut if `text` contains a stop string, which goes to `stop_hit`."""
        hits = [(at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if not hits:
            return None
        end, start, self.stop_hit = min(hits)
        return end if self._include_stop else start

    def _possible_stop(self, text: str) -> int:
        """The length of the longest end of `text` that is the start of a stop string."""
        longest = 0
        for stop in self._stop:
            first = stop[0]
            at = text.find(first, max(0, len(text) - len(stop) + 1))
            while at >= 0:
                if stop.startswith(text[at:]):
                    longest = max(longest, len(text) - at)
                    break
                at = text.find(first, at + 1)
        return longest
