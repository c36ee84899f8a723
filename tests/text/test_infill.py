"""Prompts with a gap."""

from __future__ import annotations

import pytest

from dropless.errors import InvalidRequestError
from dropless.text.infill import infill_prompt
from tests.text.vocabularies import byte_tokenizer


@pytest.mark.parametrize("spelling", ["<|fim_{}|>", "<fim_{}>"])
def test_the_gap_is_at_the_end(spelling: str) -> None:
    tokenizer = byte_tokenizer([spelling.format(part) for part in ("middle", "prefix", "suffix")])
    middle, prefix, suffix = 256, 257, 258
    assert infill_prompt(tokenizer, "ab", "c") == [prefix, 97, 98, suffix, 99, middle]
    assert infill_prompt(tokenizer, "", "c") == [prefix, suffix, 99, middle]


def test_text_never_becomes_a_mark() -> None:
    tokenizer = byte_tokenizer(["<fim_prefix>", "<fim_suffix>", "<fim_middle>"])
    marks = [256, 257, 258]
    ids = infill_prompt(tokenizer, "<fim_middle>", "<fim_suffix>")
    assert [i for i in ids if i >= 256] == marks
    assert bytes(i for i in ids if i < 256) == b"<fim_middle><fim_suffix>"


def test_a_model_without_marks_refuses() -> None:
    with pytest.raises(InvalidRequestError, match="cannot fill a gap") as caught:
        infill_prompt(byte_tokenizer(), "a", "b")
    assert (caught.value.param, caught.value.code) == ("suffix", "unsupported_parameter")
