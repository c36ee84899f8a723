"""How a constrained output can be completed in few tokens from where it stands."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What usually ends, or continues most briefly, a JSON text, a number, a word or a line.
_FAVOURITES = [
    b'"}', b'"]', b'"}}', b'"', b"}", b"}}", b"]", b"]}", b'""', b"{}", b"[]", b"0", b":", b",",
    b"null", b"true", b"a", b"1", b"{", b"[",
]  # fmt: skip
_CHARACTER_CLASSES = [
    b"0123456789", b"abcdefghijklmnopqrstuvwxyz", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    b"0123456789abcdef", b"-", b"=", b".", b"*", b"_",
]  # fmt: skip
_SPACES = [b" ", b"\n", b"\t"]
_PER_CLASS_AND_LENGTH = 2
_TRIED_TOKENS = 40  # from one state
_CHILDREN = 8  # kept of one state
_BEAM = 3  # states kept of one length
_ASIDE = 4  # states of a new kind visited beside them, shortest first
_REMEMBERED = 4096  # closings kept of one grammar
_OLD_CLOSING_STARTS = 4  # how much of an old closing may have been done already


Pace = Callable[[float], None]  # is told now and then of so many seconds of work, and may sleep


@dataclass(frozen=True)
class SearchLimits:
    """When to give up: tokens in a closing, states visited, seconds of this thread's work."""

    tokens: int
    states: int
    seconds: float
    pace: Pace | None = None


@dataclass
class _State:
    """A copy of the matcher after `path`. `detours` counts how far the path is from the favourite
    one, `since_detour` the tokens since it last left it."""

    matcher: Any
    path: list[int]
    mask: NDArray[np.uint32]  # of the tokens allowed next
    looks: int  # hash of the mask
    trace: int  # hash of this mask and of the one before, to compare states by
    detours: int = 0
    since_detour: int = 0


class ClosingSearch:
    """Finds short, not always shortest, completions.

    A narrow beam follows the favourite tokens: it gets through what needs many tokens (long
    strings, long lists). Beside it every kind of state, known by the tokens it and the state
    before it allow, is visited once, shortest path first: that finds what needs a rare token.
    """

    def __init__(self, pieces: Sequence[bytes], eos_token_id: int) -> None:
        """`pieces` are the bytes of each token id; control tokens and holes are empty."""
        self._pieces = pieces
        self._eos = eos_token_id
        self._words = (len(pieces) + 31) // 32
        self._id_of: dict[bytes, int] = {}
        for token_id, piece in enumerate(pieces):
            if piece:
                self._id_of.setdefault(piece, token_id)
        self._longest = max(map(len, self._id_of), default=0)
        groups = self._useful_tokens()
        self._candidates = np.array([i for group in groups for i in group], dtype=np.int64)
        self._group_of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])

    def after(self, closing: Sequence[int], token_id: int) -> list[int]:
        """What is left of a closing when `token_id` has been followed: less, if the token is how
        the closing begins, also where the closing spells that with other tokens."""
        text = b"".join(self._pieces[i] for i in closing)
        piece = self._pieces[token_id]
        if closing and closing[0] == token_id:
            return list(closing[1:])
        if not piece or not text.startswith(piece):
            return list(closing)
        rest = self.spell(text[len(piece) :])
        return list(closing) if rest is None else rest

    def spell(self, text: bytes) -> list[int] | None:
        """Tokens that are together these bytes; None if there are none, as for a part of a
        character of which only the whole is a token."""
        ids: list[int] = []
        start = 0
        while start < len(text):
            sizes = range(min(self._longest, len(text) - start), 0, -1)
            size = next((n for n in sizes if text[start : start + n] in self._id_of), 0)
            if not size:
                return None
            ids.append(self._id_of[text[start : start + size]])
            start += size
        return ids

    def find(
        self,
        matcher: Any,
        old_closing: Sequence[int],
        memory: dict[int, list[int]],
        limits: SearchLimits,
    ) -> list[int] | None:
        """Tokens that lead `matcher` (left as it is) to an accepting state, without the end token.

        `old_closing` completed an earlier state; where it still fits, its rest is used. `memory`
        belongs to the grammar: what was found from states that looked alike. None when nothing
        was found within the limits.
        """
        if matcher.is_accepting():
            return []
        rest = self._rest_of(matcher, old_closing)
        if rest is not None:
            return rest
        start = self._state(matcher.deep_copy(), [], before=0)
        detour = memory.get(start.looks)
        if detour is not None:
            for rest in ([], *(list(old_closing[cut:]) for cut in range(_OLD_CLOSING_STARTS))):
                if self._completes(matcher, detour + rest):
                    return detour + rest
        found = self._search(start, old_closing, limits)
        if found is None:
            return None
        path, rest = found
        if len(memory) < _REMEMBERED:
            memory[start.looks] = path
        return path + rest

    def _search(
        self, start: _State, old_closing: Sequence[int], limits: SearchLimits
    ) -> tuple[list[int], list[int]] | None:
        """New tokens, and the end of the old closing that then completes the output."""
        paced = time.thread_time()
        deadline = paced + limits.seconds
        beam = [start]
        aside: list[tuple[int, int, int, _State]] = []
        seen = {start.trace}
        visited = 0
        while beam or aside:
            width = len(beam)
            batch = beam + [heappop(aside)[-1] for _ in range(min(_ASIDE, len(aside)))]
            kept: dict[int, _State] = {}
            for place, state in enumerate(batch):
                if limits.pace is not None:
                    limits.pace(time.thread_time() - paced)
                    paced = time.thread_time()
                for child in self._children(state):
                    if child.matcher.is_accepting():
                        return child.path, []
                    rest = self._rest_of(child.matcher, old_closing)
                    if rest is not None:
                        return child.path, rest
                    visited += 1
                    if child.trace not in seen:
                        seen.add(child.trace)
                        heappush(aside, (len(child.path), child.detours, visited, child))
                    rival = kept.get(child.trace)
                    if place < width and (rival is None or _closer(child) < _closer(rival)):
                        kept[child.trace] = child
            beam = sorted(kept.values(), key=_closer)[:_BEAM]
            too_long = bool(beam) and len(beam[0].path) >= limits.tokens
            if too_long or visited > limits.states or time.thread_time() > deadline:
                return None
        return None

    def _rest_of(self, matcher: Any, closing: Sequence[int]) -> list[int] | None:
        """The end of an old closing that completes this state, if one does."""
        for start in range(min(len(closing), _OLD_CLOSING_STARTS)):
            rest = list(closing[start:])
            if self._completes(matcher, rest):
                return rest
        return None

    def _completes(self, matcher: Any, tokens: list[int]) -> bool:
        return bool(matcher.validate_tokens([*tokens, self._eos]) > len(tokens))

    def _children(self, state: _State) -> list[_State]:
        forced = state.matcher.compute_ff_bytes()
        if forced:
            token_id = self._longest_token(state, forced)
            if token_id is not None:
                child = self._child(state, token_id, rank=0)
                return [child] if child else []
        alike: dict[int, _State] = {}
        for token_id in self._allowed(state):
            child = self._child(state, token_id, rank=len(alike))
            if child is None:
                continue
            twin = alike.get(child.looks)
            if twin is None:
                alike[child.looks] = child
            elif len(self._pieces[token_id]) > len(self._pieces[twin.path[-1]]):
                child.detours, child.since_detour = twin.detours, twin.since_detour
                alike[child.looks] = child
            if len(alike) == _CHILDREN:
                break
        return list(alike.values())

    def _child(self, state: _State, token_id: int, rank: int) -> _State | None:
        matcher = state.matcher.deep_copy()
        if not matcher.consume_token(token_id):
            return None
        child = self._state(matcher, [*state.path, token_id], state.looks)
        child.detours = state.detours + rank
        child.since_detour = 0 if rank else state.since_detour + 1
        return None if matcher.is_error() else child

    def _state(self, matcher: Any, path: list[int], before: int) -> _State:
        mask = np.zeros(self._words, dtype=np.uint32)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        looks = hash(mask.tobytes())
        return _State(matcher, path, mask, looks, hash((before, looks)))

    def _allowed(self, state: _State) -> list[int]:
        """Allowed tokens worth trying: of each group its first."""
        ids = self._candidates
        is_allowed = (state.mask[ids >> 5] >> (ids & 31).astype(np.uint32)) & 1 == 1
        _, firsts = np.unique(self._group_of[is_allowed], return_index=True)
        allowed = ids[is_allowed][firsts]
        if not len(allowed):  # a character of several bytes, or a control token
            allowed = np.flatnonzero(np.unpackbits(state.mask.view(np.uint8), bitorder="little"))
        found: list[int] = allowed[:_TRIED_TOKENS].tolist()
        return found

    def _longest_token(self, state: _State, forced: bytes) -> int | None:
        for size in range(min(len(forced), self._longest), 0, -1):
            token_id = self._id_of.get(forced[:size])
            if token_id is not None and int(state.mask[token_id >> 5]) >> (token_id & 31) & 1:
                return token_id
        return None

    def _useful_tokens(self) -> list[list[int]]:
        """Token ids in groups, to be tried in this order: each favourite, the longest tokens of
        each character class, each byte, runs of spaces."""
        by_length = sorted(self._id_of, key=len, reverse=True)

        def longest(letters: bytes) -> list[bytes]:
            same_length = groupby((p for p in by_length if not p.strip(letters)), key=len)
            return [p for _, some in same_length for p in list(some)[:_PER_CLASS_AND_LENGTH]]

        groups = [[piece] for piece in _FAVOURITES]
        groups += [longest(letters) for letters in _CHARACTER_CLASSES]
        groups += [[bytes([byte])] for byte in sorted(range(256), key=_byte_order)]
        groups += [longest(space) for space in _SPACES]
        known: set[bytes] = set()
        ids: list[list[int]] = []
        for group in groups:
            ids.append([self._id_of[p] for p in group if p in self._id_of and p not in known])
            known |= set(group)
        return [group for group in ids if group]


def _byte_order(byte: int) -> tuple[bool, bool, int]:
    """Punctuation, letters and digits, then all that cannot be printed."""
    letter = chr(byte)
    return byte >= 128 or not letter.isprintable() or byte == 32, letter.isalnum(), byte


def _closer(state: _State) -> tuple[int, int]:
    return state.detours, -state.since_detour
