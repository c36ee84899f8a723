"""Keeps the text of users apart from control tokens while a template mixes the two.

Before rendering, a sentinel character breaks every spelling of a control token inside user text,
and stands at the edges of a text that could grow into a spelling together with its surroundings.
In the rendered text the spellings that remain whole are the template's own.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dropless.errors import ChatTemplateError

# Unicode noncharacters: no text uses them, and templates leave them alone.
_SENTINELS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


class ControlGuard:
    """Knows the spellings of one tokenizer's control tokens."""

    def __init__(self, control_tokens: Mapping[str, int]) -> None:
        # One character cannot be broken in two; such a token is text to templates.
        self._ids = {text: i for text, i in control_tokens.items() if len(text) > 1}
        spellings = sorted(self._ids, key=len, reverse=True)  # the longest wins, as in encoders
        self._split = re.compile(
            f"({'|'.join(map(re.escape, spellings))})" if spellings else "(?!)"
        )
        self._first_letter = _first_letters(spellings)
        self._heads = {text[:end] for text in spellings for end in range(1, len(text))}
        self._tails = {text[start:] for text in spellings for start in range(1, len(text))}
        self._all = "\n".join(spellings)
        self._longest = max(map(len, spellings), default=0)

    def sentinel(self, value: Any) -> str:
        """A character that no string inside `value` has.

        Raises:
            ChatTemplateError: they use all candidates.
        """
        texts = list(_strings(value))
        for candidate in _SENTINELS:
            if not any(candidate in text for text in texts):
                return candidate
        raise ChatTemplateError(
            "the messages use all Unicode noncharacters from U+FDD0 to U+FDEF; remove one"
        )

    def protect(self, value: Any, sentinel: str) -> Any:
        """A copy of `value` (strings, lists, mappings) with no whole spelling in its strings."""
        if isinstance(value, str):
            return self._protect_text(value, sentinel)
        if isinstance(value, Mapping):
            return {
                self.protect(key, sentinel): self.protect(item, sentinel)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.protect(item, sentinel) for item in value]
        return value

    def split(self, rendered: str, sentinel: str) -> Iterator[str | int]:
        """The stretches of ordinary text, sentinels removed, and the control token ids between."""
        for part in self._split.split(rendered):
            if part in self._ids:
                yield self._ids[part]
            elif part:
                yield part.replace(sentinel, "")

    def _protect_text(self, text: str, sentinel: str) -> str:
        # Templates trim messages, so that the edges are where the text begins, not the spaces.
        core = text.strip()
        if not core or not self._ids:
            return text
        start = text.index(core)
        before, after = text[:start], text[start + len(core) :]
        if self._continues_spelling(core):
            before += sentinel
        if any(core[-size:] in self._heads for size in self._edge_sizes(core)):
            after = sentinel + after
        return before + self._first_letter.sub(rf"\g<0>{sentinel}", core) + after

    def _continues_spelling(self, core: str) -> bool:
        return core in self._all or any(
            core[:size] in self._tails for size in self._edge_sizes(core)
        )

    def _edge_sizes(self, core: str) -> range:
        return range(1, min(len(core), self._longest) + 1)


def _first_letters(spellings: Iterable[str]) -> re.Pattern[str]:
    """Matches the first character of every spelling, also of one inside another."""
    rests: dict[str, list[str]] = defaultdict(list)
    for text in spellings:
        rests[text[0]].append(re.escape(text[1:]))
    branches = [f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items()]
    return re.compile("|".join(branches) or "(?!)")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
