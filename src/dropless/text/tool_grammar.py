"""The grammar of an answer that calls functions, and the matcher that follows it.

An answer that may also be text is not restricted until a call begins in it: so long it costs a
comparison of a few bytes for each token. Calls are not closed early when their
budget ends, other than JSON answers: half-meant arguments are worse than none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropless.errors import GrammarError
from dropless.text.tool_calls import CLOSE, MAX_SPACES, OPEN

MAX_CALLS = 32  # of one answer: a small model may repeat itself
_OPEN_BYTES = OPEN.encode()
_FIRST_ARGUMENTS_LINE = 8  # of the grammar as `lark` writes it
_MAX_REASON_CHARS = 400

Spell = Callable[[bytes], list[int] | None]  # any tokens that are together these bytes


@dataclass(frozen=True, slots=True)
class Function:
    """What may be called: `schema` is the arguments' JSON schema, of an object. Unless it is
    `strict`, keywords of it that cannot be followed are passed over."""

    name: str
    schema: dict[str, Any]
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolGrammar:
    """What an answer may call. `text_first`: it may be text, or text and then calls. `parallel`:
    several calls."""

    functions: tuple[Function, ...]
    text_first: bool
    parallel: bool

    def encode(self) -> str:
        functions = [[f.name, f.schema, f.strict] for f in self.functions]
        return json.dumps([functions, self.text_first, self.parallel])

    @classmethod
    def decode(cls, text: str) -> ToolGrammar:
        functions, text_first, parallel = json.loads(text)
        return cls(tuple(Function(*function) for function in functions), text_first, parallel)

    def lark(self, json_options: dict[str, Any]) -> str:
        """Of the calls, in llguidance's notation: with marks around them, or where text may stand
        first also without."""
        more = f"{{0,{MAX_CALLS - 1}}}"
        marked = f"call (SPACES? call){more}" if self.parallel else "call"
        unmarked = f"object (SPACES? block? object){more}" if self.parallel else "object"
        pairs = [
            f'{json.dumps(json.dumps(f.name))} SPACES? "," SPACES? arguments arguments_{i}'
            for i, f in enumerate(self.functions)
        ]
        rules = [
            f"start: {marked}" + (f' | {unmarked} (SPACES? "```")?' if self.text_first else ""),
            'block: "```" SPACES? "```" "json"? SPACES?',
            f'call: "{OPEN}" SPACES? object SPACES? "{CLOSE}"',
            'object: "{" SPACES? "\\"name\\"" SPACES? ":" SPACES? pair SPACES? "}"',
            f"pair: {' | '.join(pairs)}",
            'arguments: "\\"arguments\\"" SPACES? ":" SPACES?',
            f"SPACES: /[ \\t\\r\\n]{{1,{MAX_SPACES}}}/",
        ]
        assert len(rules) == _FIRST_ARGUMENTS_LINE - 1
        for i, f in enumerate(self.functions):
            options = {**json_options, "lenient": not f.strict}
            rules.append(f"arguments_{i}: %json {json.dumps({**f.schema, 'x-guidance': options})}")
        return "\n".join(rules) + "\n"

    def problem(self, error: str) -> str:
        """What llguidance has to say of that, as far as it concerns the caller."""
        first, _, _ = error.partition("\n")
        place = re.match(r"at (\d+)\(\d+\): ", first)
        if place is None:
            return f"the parameters of a tool cannot be used: {first[:_MAX_REASON_CHARS]}"
        function = self.functions[int(place[1]) - _FIRST_ARGUMENTS_LINE]
        reason = first[place.end() :][:_MAX_REASON_CHARS]
        return f"the parameters of the function {function.name!r} cannot be used: {reason}"


@dataclass(frozen=True, slots=True)
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
