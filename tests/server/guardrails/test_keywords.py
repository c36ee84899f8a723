"""Whole words, however they are written."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropless.server.guardrails.keywords import Keywords, words_of


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("SuperSecretProject", "about the supersecretproject."),
        ("blue river", "The Blue\n   RIVER is long"),
        ("straße", "die STRASSE"),
        ("ﬁle", "a file"),
        ("café", "cafe\u0301 au lait"),
        ("secret", "s\u200becret"),
        ("secret", "ｓｅｃｒｅｔ"),
        ("C++", "I like C++, not C"),
        ("秘密", "这是秘密文件"),
        ("don't", "I DON'T"),
        ("a.b", "see a.b now"),
    ],
)
def test_found(keyword: str, text: str) -> None:
    assert Keywords([keyword, "other"]).find(text) == [keyword]


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("ass", "a class of assets"),
        ("blue river", "blue, river"),
        ("C++", "C is old"),
        ("blue river", "blue"),
        ("secret", "secrets"),
    ],
)
def test_not_found(keyword: str, text: str) -> None:
    assert Keywords([keyword]).find(text) == []


@given(st.text(min_size=1, max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_a_keyword_between_spaces_is_found(keyword: str, before: str, after: str) -> None:
    if words_of(keyword):
        assert Keywords([keyword]).find(f"{before} \n{keyword} {after}") == [keyword]


def test_many_keywords_take_no_longer() -> None:
    keywords = Keywords(f"word{i} number{i}" for i in range(10_000))
    text = "nothing of the kind is said here " * 3000
    began = time.process_time()
    assert keywords.find(text) == []
    assert time.process_time() - began < 2
