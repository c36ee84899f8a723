"""Logprobs in the shapes of both endpoints."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dropless.engine.messages import TokenLogprob
from dropless.server.logprobs import LegacyLogprobs, TokenNames
from dropless.text.tokenizer import ByteTokenizer

NAMES = TokenNames(ByteTokenizer())
TEXT = "aé漢"
IDS = list(TEXT.encode())


def entries(ids: list[int]) -> list[TokenLogprob]:
    return [TokenLogprob(i, -1.0, [(97, -0.5), (98, -2.0)]) for i in ids]


def test_names_of_tokens() -> None:
    assert NAMES.name(97) == "a"
    assert NAMES.name(0xC3) == "bytes:\\xc3"
    assert NAMES.name(257) == "<|im_start|>"


def test_chat_entry_has_bytes_and_alternatives() -> None:
    entry = NAMES.chat_entry(TokenLogprob(0xC3, -1.5, [(97, -0.25)]))
    assert entry == {
        "token": "bytes:\\xc3",
        "logprob": -1.5,
        "bytes": [0xC3],
        "top_logprobs": [{"token": "a", "logprob": -0.25, "bytes": [97]}],
    }


def test_offsets_count_characters_also_within_one() -> None:
    result = LegacyLogprobs(NAMES, 2).add(IDS, entries(IDS))
    assert result["text_offset"] == [0, 1, 1, 2, 2, 2]
    assert result["token_logprobs"] == [-1.0] * len(IDS)


@given(st.binary(min_size=1, max_size=12))
@example(b"\x80`")
@example(b"\xe6\xbca\xe6")
@example(b"\xed\xa0\x00")
def test_offsets_in_text_that_is_no_utf_8(data: bytes) -> None:
    text = data.decode(errors="replace")
    offsets = LegacyLogprobs(NAMES, 0).add(list(data), entries(list(data)))["text_offset"]
    assert offsets == sorted(offsets)
    assert offsets[-1] < len(text)
    for byte, offset in zip(data, offsets, strict=True):
        assert byte >= 0x80 or text[offset] == chr(byte)


@pytest.mark.parametrize("cut", range(len(IDS) + 1))
def test_pieces_join_to_the_whole(cut: int) -> None:
    whole = LegacyLogprobs(NAMES, 2).add(IDS, entries(IDS))
    legacy = LegacyLogprobs(NAMES, 2)
    parts = [legacy.add(part, entries(part)) for part in (IDS[:cut], IDS[cut:])]
    assert {key: parts[0][key] + parts[1][key] for key in whole} == whole


def test_top_holds_the_chosen_token_and_keeps_the_best_of_equal_names() -> None:
    result = LegacyLogprobs(NAMES, 1).add([99], [TokenLogprob(99, -3.0, [(97, -0.5), (98, -2.0)])])
    assert result["top_logprobs"] == [{"a": -0.5, "c": -3.0}]


def test_nothing_predicts_the_first_token_of_a_prompt() -> None:
    legacy = LegacyLogprobs(NAMES, 1)
    legacy.begin_at_prompt("ab", [97, 98])
    result = legacy.add([97, 98], [None, *entries([98])])
    assert result["token_logprobs"] == [None, -1.0]
    assert result["top_logprobs"] == [None, {"a": -0.5, "b": -1.0}]


def test_no_alternatives_asked_none_given() -> None:
    assert LegacyLogprobs(NAMES, 0).add([97], entries([97]))["top_logprobs"] is None


def test_a_space_that_the_tokenizer_adds_is_not_counted() -> None:
    legacy = LegacyLogprobs(NAMES, 0)
    prompt = list(b" ab c")  # of the text "ab c"
    legacy.begin_at_prompt("ab c", prompt)
    assert legacy.add(prompt, entries(prompt))["text_offset"] == [0, 0, 1, 2, 3]
