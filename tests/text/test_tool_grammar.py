"""Answers that a grammar holds to well-formed calls, whatever a model samples."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropless.errors import GrammarError
from dropless.text.grammar import GrammarCompiler
from dropless.text.tokenizer import Tokenizer
from dropless.text.tool_calls import CLOSE, OPEN, CallReader
from dropless.text.tool_grammar import Function, ToolGrammar
from dropless.text.tool_matcher import ToolMatcher
from tests.text.vocabularies import byte_tokenizer

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
FUNCTIONS = (Function("weather", WEATHER), Function("weather_now", NOTHING))
SCHEMAS = {function.name: function.schema for function in FUNCTIONS}
# Pieces that lie across the borders of marks and calls, as those of trained vocabularies do.
EXTRA = [
    b"<tool", b"_call", b"call>\n", b">{", b'>`"', b" <", b"></", b'{"', b"name", b'"name": "',
    b'weather"', b'weather"}', b"_now", b'", "', b"arguments", b'": {', b'"}}', b"}}\n", b"\n</",
    b"```json\n", b"```", b"Hello ", b'"city": "', b"Oslo",
]  # fmt: skip
WHOLE_MARKS = [OPEN.encode(), CLOSE.encode()]
CONTROL = ("<|end|>", "<|im_start|>")
BEFORE_EXTRA = 256 + len(CONTROL)  # token ids


def tokenizer_of(kind: str) -> Tokenizer:
    """Of a model for which the marks are plain text, single tokens, or control tokens."""
    if kind == "control":
        return byte_tokenizer((*CONTROL, OPEN, CLOSE), EXTRA)
    return byte_tokenizer(CONTROL, EXTRA + (WHOLE_MARKS if kind == "token" else []))


TOKENIZERS = {kind: tokenizer_of(kind) for kind in ("text", "token", "control")}
COMPILERS = {
    kind: GrammarCompiler(tokenizer, tokenizer.vocab_size, tokenizer.eos_token_ids)
    for kind, tokenizer in TOKENIZERS.items()
}


def matcher_of(kind: str = "text", **options: Any) -> ToolMatcher:
    fields = {"functions": FUNCTIONS, "text_first": True, "parallel": True, **options}
    matcher = COMPILERS[kind].compile("tool_calls", ToolGrammar(**fields).encode())
    assert isinstance(matcher, ToolMatcher)
    return matcher


def allowed(matcher: ToolMatcher, tokenizer: Tokenizer) -> list[int]:
    row = np.zeros((tokenizer.vocab_size + 31) // 32, dtype=np.uint32)
    matcher.fill_mask(row)
    ids: list[int] = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()
    return ids


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, bool, bool, list[int]]:
    """A kind of model, `text_first` and `parallel`, and an answer of tokens drawn at random, more
    often those that lead into calls."""
    kind = draw(st.sampled_from(sorted(TOKENIZERS)))
    tokenizer = TOKENIZERS[kind]
    text_first, parallel = draw(st.booleans()), draw(st.booleans())
    matcher = matcher_of(kind, text_first=text_first, parallel=parallel)
    random = draw(st.randoms(use_true_random=False))
    favourites = [i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) > 1]
    begin = draw(st.sampled_from([b"", b"Hi <tool_call>", b'{"name": "weather"', b"```json\n{"]))
    planned = list(begin) if text_first else []
    ids: list[int] = []
    for _ in range(120):
        choices = allowed(matcher, tokenizer) if matcher.restricts else None
        if planned and not matcher.restricts:
            sampled = planned.pop(0)
        elif choices is None:
            sampled = random.choice([*favourites, *range(256), tokenizer.eos_token_ids[0]])
        else:
            liked = [i for i in choices if i in favourites or i in tokenizer.eos_token_ids]
            sampled = random.choice(liked or choices)
        chosen = matcher.choose(sampled, 1)
        if chosen in tokenizer.eos_token_ids:
            break
        ids.append(chosen)
        if matcher.finished:
            break
    return kind, text_first, parallel, ids


@settings(max_examples=40)
@given(answers())
def test_calls_are_well_formed_whatever_is_sampled(
    answer: tuple[str, bool, bool, list[int]],
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    kind, text_first, parallel, ids = answer
    reader = CallReader(SCHEMAS, text_first=text_first)
    data = b"".join(map(TOKENIZERS[kind].token_bytes, ids))
    text, pieces = reader.push(data.decode("utf-8", "replace"))
    assert OPEN not in text
    assert text_first or not text
    assert parallel or reader.num_calls <= 1
    for index in range(reader.num_calls):
        parts = [piece for piece in pieces if piece.index == index]
        if parts[-1].ended:
            assert parts[0].name is not None
            arguments = "".join(piece.arguments for piece in parts)
            jsonschema.validate(json.loads(arguments), SCHEMAS[parts[0].name])
        else:
            assert index == reader.num_calls - 1


@settings(max_examples=20)
@given(answers())
def test_an_answer_is_followed_again_as_it_was_written(
    answer: tuple[str, bool, bool, list[int]],
) -> None:
    kind, text_first, parallel, ids = answer
    matcher = matcher_of(kind, text_first=text_first, parallel=parallel)
    assert all(matcher.accept(token_id) for token_id in ids)


def follow(matcher: ToolMatcher, text: bytes) -> None:
    for byte in text:
        assert matcher.choose(byte, 1) == byte


@pytest.mark.parametrize("text", [b'{"name": "nobody"', b"a <tool_cal", b"```python\nprint()\n```"])
def test_text_is_not_restricted(text: bytes) -> None:
    matcher = matcher_of()
    follow(matcher, text)
    assert not matcher.restricts
    assert not matcher.finished


@pytest.mark.parametrize(
    "text", [b"Hi.\n<tool_call>", b'{"name": "weather"', b'\n```json\n{\n  "name": "weather_now"']
)
def test_a_call_restricts_from_its_beginning(text: bytes) -> None:
    matcher = matcher_of()
    follow(matcher, text[:-1])
    assert not matcher.restricts
    follow(matcher, text[-1:])
    assert matcher.restricts
    assert not matcher.accept(ord("!"))


def test_a_token_that_goes_on_as_no_call_does_is_replaced() -> None:
    tokenizer = TOKENIZERS["text"]
    matcher = matcher_of()
    follow(matcher, b"<tool_call")
    chosen = matcher.choose(BEFORE_EXTRA + EXTRA.index(b'>`"'), 1)
    assert tokenizer.token_bytes(chosen) == b">"
    assert matcher.restricts
    matcher = matcher_of()
    follow(matcher, b'{"name": "')
    chosen = matcher.choose(BEFORE_EXTRA + EXTRA.index(b'weather"}'), 1)
    assert tokenizer.token_bytes(chosen) == b'weather"'


def test_one_call_is_the_end_where_there_may_be_one() -> None:
    call = b'<tool_call>\n{"name": "weather_now", "arguments": {}}\n</tool_call>'
    one, several = matcher_of(parallel=False), matcher_of()
    for matcher in (one, several):
        follow(matcher, call)
    assert one.finished
    assert not several.finished
    assert several.accept(ord("\n"))


def test_a_code_block_around_calls_may_be_closed() -> None:
    matcher = matcher_of()
    follow(matcher, b'```json\n{"name": "weather_now", "arguments": {}}\n```')
    assert matcher.accept(TOKENIZERS["text"].eos_token_ids[0])


def test_keywords_that_cannot_be_followed_matter_to_strict_functions_only() -> None:
    schema = {"type": "object", "not": {"required": ["a"]}}
    matcher_of(functions=(Function("f", schema),))
    with pytest.raises(GrammarError, match=r"function 'f' cannot be used.*Unimplemented") as error:
        matcher_of(functions=(Function("g", NOTHING), Function("f", schema, strict=True)))
    assert error.value.param == "tools"


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "object", "properties": {"a": {"type": "strnig"}}}, "Invalid type: strnig"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "unsatisfiable"),
        ({"type": "object", "$ref": "http://example.org/a"}, "not present"),
        ({"type": "object", "title": "\ud800"}, "cannot be used"),
        ({"type": "object", "description": "x" * 70_000}, "at most 65536 are allowed"),
        (
            {"type": "object", "properties": {f"key-{i:04}": {} for i in range(700)}},
            "cannot be used: .*max is 2000",
        ),
        (json.loads('{"not":' * 200 + "{}" + "}" * 200), "recursion limit"),
    ],
)
def test_what_cannot_be_used_says_why(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(GrammarError, match=message) as error:
        matcher_of(functions=(Function("f", schema),))
    assert error.value.param == "tools"
    assert len(str(error.value)) < 600
