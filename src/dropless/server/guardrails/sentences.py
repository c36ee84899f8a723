"""Where a text may be cut so that what is judged makes sense by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

# The cut is behind the match. A full stop counts when white space follows, so "3.5" is whole and
# an ellipsis that still grows is not cut; whether a cut is one never changes when more text comes.
_CUT = re.compile(r"""[.!?…]["'”’»)\]]*(?=\s)|[。！？]|\n""")


def last_cut(text: str) -> int:
    """The end of the last complete sentence or line; 0 if none is complete."""
    cut = 0
    for match in _CUT.finditer(text):
        cut = match.end()
    return cut


def last_space(text: str) -> int:
    """The place of the last white space; 0 if there is none but at the beginning."""
    for place in range(len(text) - 1, 0, -1):
        if text[place].isspace():
            return place
    return 0


def pieces(text: str, start: int, most: int) -> Iterator[tuple[int, int]]:
    """The text from `start` to its end as pieces (start, end) of at most `most` characters, cut
    behind sentences where that is possible, else at white space, else anywhere."""
    while len(text) - start > most:
        window = text[start : start + most]
        cut = last_cut(window) or last_space(window) or most
        yield start, start + cut
        start += cut
    if start < len(text):
        yield start, len(text)
