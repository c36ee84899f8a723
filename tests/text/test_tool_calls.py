"""Answers with calls, read from any deltas."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropless.text.tool_calls import CLOSE, OPEN, CallPiece, CallReader

NAMES = ["get", "get_weather", "f-1"]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.sampled_from([OPEN, CLOSE, '"}', "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
CALLS = st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text(), JSON, max_size=3))
# Texts near to marks and to calls without one.
BITS = st.sampled_from(
    [*OPEN, "<", "<tool", "_call", "{", '{"name"', ": ", '"get', "```json\n", "\n"]
)
TEXTS = st.lists(st.text(max_size=5) | BITS, max_size=8).map("".join)

Call = tuple[str, dict[str, Any]]


def written(call: Call, marked: bool, indent: int | None = None) -> str:
    name, arguments = call
    text = json.dumps({"name": name, "arguments": arguments}, indent=indent, ensure_ascii=False)
    return f"{OPEN}\n{text}\n{CLOSE}" if marked else text


@st.composite
def split(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def read(
    pieces: list[str], *, text_first: bool = True, cut: bool = False
) -> tuple[str, list[tuple[str, str, bool]], CallReader]:
    """The text, the calls as name, arguments and whether they ended, and the reader."""
    reader = CallReader(NAMES, text_first=text_first)
    text, calls = "", []
    for piece in pieces:
        shown, news = reader.push(piece)
        text += shown
        assert OPEN not in text
        for part in news:
            if part.name is not None:
                assert (part.index, part.arguments, part.ended) == (len(calls), "", False)
                calls.append((part.name, "", False))
            else:
                name, arguments, ended = calls[part.index]
                assert not ended
                assert part.arguments
                calls[part.index] = (name, arguments + part.arguments, part.ended)
    return text + reader.finish(cut=cut), calls, reader


def is_text(text: str) -> bool:
    """Whether there is neither a mark nor a call in it."""
    reader = CallReader(NAMES, text_first=True)
    reader.push(text)
    return reader.is_text


@settings(max_examples=40)
@given(TEXTS.filter(is_text), st.lists(CALLS, min_size=1, max_size=3), st.data())
def test_text_and_calls_are_the_same_however_they_come(
    before: str, calls: list[Call], data: st.DataObject
) -> None:
    answer = before + "\n".join(written(call, marked=True) for call in calls)
    text, found, reader = read(data.draw(split(answer)))
    assert text == before.rstrip()
    assert [(name, json.loads(arguments)) for name, arguments, _ in found] == calls
    assert not reader.is_inside


@settings(max_examples=40)
@given(
    st.sampled_from(["", "\n", "```json\n", "```\n "]),
    st.lists(CALLS, min_size=1, max_size=3),
    st.sampled_from([None, 2]),
    st.data(),
)
def test_calls_without_marks(
    before: str, calls: list[Call], indent: int | None, data: st.DataObject
) -> None:
    answer = before + "\n".join(written(call, False, indent) for call in calls)
    text, found, _ = read(data.draw(split(answer)))
    assert text == ""
    assert [(name, json.loads(arguments)) for name, arguments, _ in found] == calls


@settings(max_examples=40)
@given(TEXTS.filter(is_text), st.data())
def test_text_alone_comes_through_whole(text: str, data: st.DataObject) -> None:
    assert read(data.draw(split(text)))[:2] == (text, [])


@settings(max_examples=40)
@given(TEXTS.filter(is_text), st.lists(CALLS, min_size=1, max_size=2), st.data())
def test_a_cut_answer_shows_what_there_is_and_no_part_of_a_mark(
    before: str, calls: list[Call], data: st.DataObject
) -> None:
    answer = before + "\n".join(written(call, marked=True) for call in calls)
    whole = read([answer])[1]
    end = data.draw(st.integers(0, len(answer)))
    text, found, reader = read(data.draw(split(answer[:end])), cut=True)
    assert before.startswith(text)
    for i, (name, arguments, ended) in enumerate(found):
        assert name == whole[i][0]
        assert whole[i][1].startswith(arguments)
        assert ended == (arguments == whole[i][1])
        assert ended or i == len(found) - 1
    assert reader.num_calls == len(found)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "nobody", "arguments": {}}',
        'Look: {"name": "get", "arguments": {}}',
        '{"name": "get_weather_now", "arguments": {}}',
        "```python\nprint()\n```",
        "a < b, <tool> and <tool_call",
        "",
    ],
)
def test_what_is_no_call(text: str) -> None:
    assert read([text])[:2] == (text, [])


def test_where_only_calls_may_be_nothing_else_is_shown() -> None:
    call = written(("get", {}), marked=True)
    assert read([call], text_first=False)[:2] == ("", [("get", "{}", True)])
    assert read([call[:9]], text_first=False, cut=True)[:2] == ("", [])


def test_pieces_come_as_soon_as_they_are_understood() -> None:
    reader = CallReader(NAMES, text_first=True)
    assert reader.push("Let me see.\n<tool") == ("Let me see.", [])
    assert reader.push("_call>") == ("", [])
    assert reader.push('{"name": "get", "arguments": ') == ("", [])
    assert reader.push('{"a": "b') == ("", [CallPiece(0, "get"), CallPiece(0, None, '{"a": "b')])
    assert reader.push('"}}') == ("", [CallPiece(0, None, '"}', ended=True)])
    assert not reader.is_inside
