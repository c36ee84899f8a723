from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropless.text.detokenizer import IncrementalDetokenizer
from tests.text.vocabularies import byte_tokenizer

TOKENIZER = byte_tokenizer(extra=[b" the", "é".encode()[:1], "日本".encode()[:4], b"ab", b"<|im"])
SPACED = byte_tokenizer(leading_space=True)

# Bytes that make stop strings, half characters and invalid UTF-8 likely.
token_ids = st.one_of(
    st.sampled_from([*b"aab<|>\n ", 256, 257, 259, 260, 261, 262, 263]),
    st.integers(0, TOKENIZER.vocab_size - 1),
    st.sampled_from([*"😀é日".encode(), 0xED, 0xA0, 0xF0, 0xFF]),
)
chunks = st.lists(st.lists(token_ids, max_size=4), max_size=20)
stop_strings = st.lists(
    st.one_of(st.text("ab<|\n ", min_size=1, max_size=5), st.text(min_size=1, max_size=2)),
    max_size=4,
)


def cut_at_first_complete_stop(text: str, stop: list[str], include: bool) -> tuple[str, str | None]:
    """The definition, spelled out: read letter by letter until a stop string is complete."""
    for end in range(1, len(text) + 1):
        hits = [s for s in stop if text[:end].endswith(s)]
        if hits:
            longest = max(hits, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


@given(chunks, stop_strings, st.booleans())
def test_pushes_join_to_the_full_decoding_cut_at_the_stop(
    pushes: list[list[int]], stop: list[str], include: bool
) -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZER, stop, include)
    emitted = "".join(detokenizer.push(ids) for ids in pushes) + detokenizer.finish()
    full = TOKENIZER.decode([i for ids in pushes for i in ids])
    assert (emitted, detokenizer.stop_hit) == cut_at_first_complete_stop(full, stop, include)


@given(chunks, stop_strings)
def test_holds_back_what_may_start_a_stop_and_no_more(
    pushes: list[list[int]], stop: list[str]
) -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZER, stop)
    emitted, data = "", b""
    for ids in pushes:
        emitted += detokenizer.push(ids)
        if detokenizer.stop_hit is not None:
            return
        data += b"".join(map(TOKENIZER.token_bytes, ids))
        text = data.decode("utf-8", "replace")
        assert text.startswith(emitted)
        held = max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        unfinished = text.endswith("�")  # a half character at the end decodes to U+FFFD
        if not unfinished:
            assert emitted == text[: len(text) - held]


def test_a_character_is_emitted_whole() -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZER)
    assert [detokenizer.push([byte]) for byte in "a😀é".encode()] == [
        "a", "", "", "", "😀", "", "é",
    ]  # fmt: skip


def test_invalid_bytes_become_replacement_characters_at_once() -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZER)
    assert detokenizer.push([0xFF]) == "�"
    assert detokenizer.push([0xF0]) == ""
    assert detokenizer.push([ord("a")]) == "�a"
    assert detokenizer.push([0xE6]) == ""
    assert detokenizer.finish() == "�"


def test_nothing_after_a_stop_string() -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZER, ["<|im"])
    assert detokenizer.push(TOKENIZER.encode("hi <")) == "hi "
    assert detokenizer.push(TOKENIZER.encode("|i")) == ""
    assert detokenizer.push(TOKENIZER.encode("mm")) == ""
    assert detokenizer.stop_hit == "<|im"
    assert detokenizer.push(TOKENIZER.encode("more")) == ""
    assert detokenizer.finish() == ""


@pytest.mark.parametrize(
    ("continues", "expected"), [(False, "hello  world"), (True, " hello  world")]
)
def test_the_leading_space_belongs_to_the_first_text_only(continues: bool, expected: str) -> None:
    detokenizer = IncrementalDetokenizer(SPACED, continues_text=continues)
    ids = SPACED.encode("hello") + SPACED.encode(" world")
    pushed = "".join(detokenizer.push([256, i]) for i in ids) + detokenizer.finish()
    assert pushed == expected
