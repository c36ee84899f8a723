"""JSON values judged as texts, and masked."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropless.encoder.messages import Entity
from dropless.server.guardrails.json_text import JsonText, arguments_text, masked_arguments

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=30)
@given(VALUES)
def test_nothing_found_changes_nothing(value: object) -> None:
    assert JsonText(value).masked([]) == value


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), st.data())
def test_masked_arguments_are_json_of_the_same_shape(
    value: dict[str, object], data: st.DataObject
) -> None:
    written = json.dumps(value)
    text = arguments_text(written)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text.text)), max_size=6)))
    found = [Entity(a, b, "X") for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    masked = json.loads(masked_arguments(written, text, found))
    assert isinstance(masked, dict)
    assert len(masked) <= len(value)  # keys that become the same are one


def test_an_entity_over_several_values_is_masked_in_each() -> None:
    text = JsonText({"a": "x 12", "b": 34, "c": True})
    start, end = text.text.index("12"), text.text.index("34") + 1
    assert text.masked([Entity(start, end, "N")]) == {"a": "x <N>", "<N>": "<N>4", "c": True}


@pytest.mark.parametrize("arguments", ['{"a": "secr', '{"a": "secret", "a": 1}', "[" * 5000])
def test_what_is_no_whole_json_is_one_text(arguments: str) -> None:
    text = arguments_text(arguments)
    assert text.text == arguments + "\n"
    assert masked_arguments(arguments, text, []) == arguments
    assert masked_arguments(arguments, text, [Entity(0, 2, "X")]) == "<X>" + arguments[2:]
