"""Words that may not occur, found in whatever case, width or spacing they are written."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache

# Scripts that put no spaces between words: there every character is a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


def words_of(text: str) -> tuple[str, ...]:
    """Words and single marks, in one case and form; invisible characters are left out."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    visible = "".join(c for c in folded if unicodedata.category(c) != "Cf")
    return tuple(_WORD.findall(visible))


class Keywords:
    """Finds keywords of one or several words, as whole words only: "ass" is not in "class"."""

    def __init__(self, keywords: Iterable[str]) -> None:
        self._by_first: dict[str, list[tuple[tuple[str, ...], str]]] = defaultdict(list)
        for keyword in keywords:
            words = words_of(keyword)
            self._by_first[words[0]].append((words, keyword))

    def find(self, text: str) -> list[str]:
        """Those that the text has, each once, as they were given."""
        if not self._by_first:
            return []
        words = words_of(text)
        found: dict[str, None] = {}
        for place, word in enumerate(words):
            for sought, keyword in self._by_first.get(word, ()):
                if words[place : place + len(sought)] == sought:
                    found[keyword] = None
        return list(found)


@lru_cache(maxsize=64)
def compiled(keywords: tuple[str, ...]) -> Keywords:
    """Made once for as many sets of rules as a server is likely to have."""
    return Keywords(keywords)
