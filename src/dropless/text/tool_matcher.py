"""Follows an answer that calls functions through its grammar.

An answer that may also be text is not restricted until a call begins in it: so long it costs a
comparison of a few bytes for each token. Calls are not closed early when their budget ends, other
than JSON answers: half-meant arguments are worse than none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropless.errors import GrammarError
from dropless.text.tool_calls import OPEN

_OPEN_BYTES = OPEN.encode()

Spell = Callable[[bytes], list[int] | None]  # any tokens that are together these bytes


@dataclass(frozen=True, slots=True, weakref_slot=True)
class CompiledTools:
    """A ToolGrammar for one vocabulary: llguidance's matcher before the first call, whether text
    may stand first, and how the beginning of an unmarked call looks, in bytes."""

    calls: Any
    text_first: bool
    unmarked: Any


class ToolMatcher:
    """Follows one answer. Not thread-safe; one per sequence."""

    min_tokens_to_finish = 1  # a call may be cut

    def __init__(
        self,
        tools: CompiledTools,
        token_bytes: Callable[[int], bytes],
        spell: Spell,
        eos_token_id: int,
    ) -> None:
        self._tools = tools
        self._token_bytes = token_bytes
        self._spell = spell
        self._eos = eos_token_id
        self._calls = None if tools.text_first else tools.calls.deep_copy()
        # While no call has begun: the end of the text, as much as may be the beginning of a mark;
        # and all of it, as long as it may be the beginning of an unmarked call.
        self._tail = b""
        self._all: bytes | None = b""

    @property
    def restricts(self) -> bool:
        """Whether some tokens are not allowed next."""
        return self._calls is not None

    @property
    def finished(self) -> bool:
        """Whether nothing but an end token may follow."""
        return self._calls is not None and bool(self._calls.is_stopped())

    def fill_mask(self, row: NDArray[np.uint32]) -> None:
        """As `Matcher.fill_mask`, where it `restricts`. Where a schema contradicts itself and
        nothing can follow, the end token is allowed.

        Raises:
            GrammarError: the grammar became too complex at this point.
        """
        assert self._calls is not None
        self._calls.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        self._check_error()
        if not row.any():
            row[self._eos >> 5] |= np.uint32(1 << (self._eos & 31))

    def accept(self, token_id: int) -> bool:
        """Follow one token; False, and no change, if it is not allowed."""
        if self._calls is not None:
            return bool(self._calls.try_consume_tokens([token_id]) == 1)
        piece = self._token_bytes(token_id)
        begun = self._begun(piece)
        if begun is None:
            self._tail = (self._tail + piece)[1 - len(_OPEN_BYTES) :]
            if self._all is not None:
                self._all += piece
                if self._tools.unmarked.match(self._all, partial=True) is None:
                    self._all = None
            return True
        ids = self._spell(begun[0])
        calls = self._tools.calls.deep_copy()
        if ids is None or calls.try_consume_tokens(ids) != len(ids):
            return False
        self._calls = calls
        return True

    def choose(self, token_id: int, remaining: int) -> int:
        """Follow `token_id`, or where it begins a call and goes on as none does, a token that only
        begins it. Returns the token that was followed and belongs into the output.

        Raises:
            GrammarError: the grammar became too complex at this point.
        """
        del remaining
        if self.accept(token_id):
            return token_id
        if self._calls is not None:  # the end, where nothing else could follow
            self._check_error()
            return self._eos
        piece = self._token_bytes(token_id)
        begun = self._begun(piece)
        ids = None if begun is None else self._spell(piece[: len(piece) - begun[1]])
        if not ids or not self.accept(ids[0]):
            raise GrammarError(f"this model has no tokens to write {OPEN} with", param="tools")
        return ids[0]

    def _begun(self, piece: bytes) -> tuple[bytes, int] | None:
        """If this piece begins a call: its text so far, and how much of that lies behind what tells
        that it is one."""
        text = self._tail + piece
        at = text.find(_OPEN_BYTES)
        if at >= 0:
            return text[at:], len(text) - at - len(_OPEN_BYTES)
        if self._all is None:
            return None
        text = self._all + piece
        match = self._tools.unmarked.match(text)
        return match and (text[match.start("call") :], len(text) - match.end())

    def _check_error(self) -> None:
        if self._calls is not None and self._calls.is_error():
            raise GrammarError(
                f"a call cannot be followed any further: {self._calls.get_error()[:400]}",
                param="tools",
            )
