"""How a constrained output can be completed in few tokens from where it stands."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
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
_BEAM = 5  # states kept of one length
_BEAM_UNSEEN = 8  # further ones, if nothing like them was met before
_OLD_CLOSING_STARTS = 4  # how much of an old closing may have been done already


@dataclass(frozen=True)
class SearchLimits:
    """When to give up: tokens in a closing, states visited, seconds."""

    tokens: int
    states: int
    seconds: float


@dataclass
class _State:
    """A copy of the matcher after `path`. `detours` counts how far the path is from the favourite
    one, `since_detour` the tokens since it last left it."""

    matcher: Any
    path: list[int]
    mask: NDArray[np.uint32]  # of the tokens allowed next
    looks: bytes  # the mask, to compare states by
    detours: int = 0
    since_detour: int = 0


class ClosingSearch:
    """Beam search for a short completion. States of one length that allow the same next tokens
    are taken for equal, and the one nearest to the favourite path is kept: that keeps the beam
    narrow, at the price of closings that are short but not always the shortest."""

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
        rest: list[int] = []
        start = len(piece)
        while start < len(text):
            sizes = range(min(self._longest, len(text) - start), 0, -1)
            size = next((n for n in sizes if text[start : start + n] in self._id_of), 0)
            if not size:  # a character of which only the whole is a token
                return list(closing)
            rest.append(self._id_of[text[start : start + size]])
            start += size
        return rest

    def find(
        self, matcher: Any, old_closing: Sequence[int], limits: SearchLimits
    ) -> list[int] | None:
        """Tokens that lead `matcher` (left as it is) to an accepting state, without the end token.

        `old_closing` completed an earlier state; where it still fits, its rest is used. None when
        nothing was found within the limits.
        """
        if matcher.is_accepting():
            return []
        rest = self._rest_of(matcher, old_closing)
        if rest is not None:
            return rest
        deadline = time.monotonic() + limits.seconds
        beam = [self._state(matcher.deep_copy(), [])]
        seen: set[bytes] = set()
        visited = 0
        for _ in range(limits.tokens):
            kept: dict[bytes, _State] = {}
            for state in beam:
                visited += 1
                for child in self._children(state):
                    if child.matcher.is_accepting():
                        return child.path
                    rest = self._rest_of(child.matcher, old_closing)
                    if rest is not None:
                        return child.path + rest
                    rival = kept.get(child.looks)
                    if rival is None or _closer(child) < _closer(rival):
                        kept[child.looks] = child
            ranked = sorted(kept.values(), key=_closer)
            unseen = [state for state in ranked[_BEAM:] if state.looks not in seen]
            beam = ranked[:_BEAM] + unseen[:_BEAM_UNSEEN]
            seen |= kept.keys()
            if not beam or visited > limits.states or time.monotonic() > deadline:
                return None
        return None

    def _rest_of(self, matcher: Any, closing: Sequence[int]) -> list[int] | None:
        """The end of an old closing that completes this state, if one does."""
        for start in range(min(len(closing), _OLD_CLOSING_STARTS)):
            rest = list(closing[start:])
            if matcher.validate_tokens([*rest, self._eos]) > len(rest):
                return rest
        return None

    def _children(self, state: _State) -> list[_State]:
        forced = state.matcher.compute_ff_bytes()
        if forced:
            token_id = self._longest_token(state, forced)
            if token_id is not None:
                child = self._child(state, token_id, rank=0)
                return [child] if child else []
        alike: dict[bytes, _State] = {}
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
        child = self._state(matcher, [*state.path, token_id])
        child.detours = state.detours + rank
        child.since_detour = 0 if rank else state.since_detour + 1
        return None if matcher.is_error() else child

    def _state(self, matcher: Any, path: list[int]) -> _State:
        mask = np.zeros(self._words, dtype=np.uint32)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        return _State(matcher, path, mask, mask.tobytes())

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
