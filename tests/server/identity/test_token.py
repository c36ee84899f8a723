"""Tokens as text."""

from __future__ import annotations

import hashlib
import pickle
import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropless.errors import AuthenticationError
from dropless.server.identity.token import Token, redacted

ALPHABET = string.digits + string.ascii_letters


def test_what_a_scanner_looks_for() -> None:
    values = [Token.new().value for _ in range(50)]
    assert len(set(values)) == 50
    for value in values:
        assert re.fullmatch(r"dlp_[0-9A-Za-z]{48}", value)
        assert Token.parse(value).sha256 == hashlib.sha256(value.encode()).digest()


def test_the_checksum_is_what_the_documents_say() -> None:
    """CRC-32 of all before it, in base 62 with digits, capitals, small letters."""
    import zlib

    digits = string.digits + string.ascii_uppercase + string.ascii_lowercase
    value = Token.new().value
    number = 0
    for character in value[-6:]:
        number = number * 62 + digits.index(character)
    assert number == zlib.crc32(value[:-6].encode())


@settings(max_examples=50)
@given(st.data())
def test_one_wrong_character_is_noticed(data: st.DataObject) -> None:
    value = Token.new().value
    at = data.draw(st.integers(0, len(value) - 1))
    other = data.draw(st.sampled_from(ALPHABET).filter(lambda c: c != value[at]))
    with pytest.raises(AuthenticationError):
        Token.parse(value[:at] + other + value[at + 1 :])


@settings(max_examples=30)
@given(st.text())
def test_no_text_breaks_it_nor_is_repeated(text: str) -> None:
    with pytest.raises(AuthenticationError) as error:
        Token.parse(text)
    assert len(text) < 8 or text not in str(error.value)


def test_it_does_not_show_its_secret() -> None:
    token = Token.new()
    for shown in (repr(token), str(token), f"{token}", repr([token]), f"{token!r:>80}"):
        assert token.value not in shown
        assert token.value[14:] not in shown
        assert token.token_id in shown
    assert pickle.loads(pickle.dumps(token)) == token


@settings(max_examples=30)
@given(st.text(), st.text(), st.integers(1, 38))
def test_logs_keep_only_the_name_of_a_token(before: str, after: str, length: int) -> None:
    token = Token.new()
    line = redacted(f"{before} {token.value} {after} {token.value[: 14 + length]}")
    assert token.value[14 : 14 + length] not in line or token.value[14 : 14 + length] in before + (
        after + token.token_id
    )
    assert line.count(f"{token.token_id}...") == 2
    assert redacted(before.replace("dlp_", "")) == before.replace("dlp_", "")
