from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropless.errors import GrammarError
from dropless.text.grammar import GrammarCompiler, Matcher
from tests.text.vocabularies import byte_tokenizer

# Tokens that open, close and cross the borders of a JSON text, as trained vocabularies have them.
EXTRA = [
    b'{"', b'":', b'": ', b'","', b'", "', b'"}', b"}}", b"]}", b"[[", b"]]", b'"]', b"{}", b"[]",
    b"null", b"true", b"false", b"00", b"123", b"abc", b"hello", b"        ", b"\n  ", b"----",
    b"name", b'"id', b"tags", b"lph", b"20", b"-0", b"ab", b"cc", "é".encode(), "日本".encode(),
]  # fmt: skip
TOKENIZER = byte_tokenizer(extra=EXTRA)
VOCAB = TOKENIZER.vocab_size + 5  # logits are often wider than the vocabulary
COMPILER = GrammarCompiler(TOKENIZER, VOCAB, TOKENIZER.eos_token_ids)

NODE = {
    "type": "object",
    "properties": {
        "value": {"type": "integer"},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
    },
    "required": ["value", "next"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "anything": {},
    "flat": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "tags": {"type": "array"}},
        "required": ["name", "tags"],
        "additionalProperties": False,
    },
    "nested": {
        "type": "object",
        "properties": {
            "items": {
                "type": "array",
                "minItems": 2,
                "items": {
                    "type": "object",
                    "properties": {
                        "id": {"type": "integer"},
                        "kind": {"enum": ["alpha", "beta", 3]},
                        "inner": {
                            "type": "object",
                            "properties": {"x": {"type": "number"}, "y": {"type": "boolean"}},
                            "required": ["x", "y"],
                        },
                    },
                    "required": ["id", "kind"],
                },
            }
        },
        "required": ["items"],
    },
    "recursive": {"$defs": {"node": NODE}, "$ref": "#/$defs/node"},
    "patterns": {
        "type": "object",
        "properties": {
            "day": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"},
            "long": {"type": "string", "minLength": 20, "maxLength": 30},
        },
        "required": ["day", "long"],
    },
    "late_cost": {  # the shortest output leaves out what takes many tokens once it is begun
        "type": "object",
        "properties": {
            "id": {"type": "integer"},
            "all": {
                "type": "object",
                "properties": {f"k{i}": {"type": "string"} for i in range(8)},
                "required": [f"k{i}" for i in range(8)],
            },
        },
        "required": ["id"],
    },
}
REGEXES = ["(ab)*c", "[ab]+[cd]{9}e", r"[a-z]{5}@[0-9]+", "(a|b)*a(a|b){7}", "x*", "[一-龥]{2}é?"]
LARK = """
start: "<" NAME ">" body "</end>"
NAME: /[a-z]{3,5}/
body: (start | /[0-9]+/)*
"""


def allowed(matcher: Matcher) -> list[int]:
    row = np.zeros((VOCAB + 31) // 32, dtype=np.uint32)
    matcher.fill_mask(row)
    bits = np.unpackbits(row.view(np.uint8), bitorder="little")
    ids: list[int] = np.flatnonzero(bits).tolist()
    return ids


def generate(matcher: Matcher, budget: int, pick: Callable[[list[int]], int]) -> str:
    """What an engine does, with `pick` for the model: at most `budget` tokens."""
    ids: list[int] = []
    for remaining in range(budget, 0, -1):
        if matcher.finished:
            break
        token_id = matcher.choose(pick(allowed(matcher)), remaining)
        if token_id in TOKENIZER.eos_token_ids:
            break
        ids.append(token_id)
    assert matcher.accepting
    return b"".join(map(TOKENIZER.token_bytes, ids)).decode("utf-8")


@st.composite
def runs(draw: st.DrawFn, kind: str, texts: list[str]) -> tuple[str, str]:
    """A grammar, and an output of random tokens within a random budget."""
    text = draw(st.sampled_from(texts))
    matcher = COMPILER.compile(kind, text)
    budget = max(1, matcher.min_tokens_to_finish) + draw(st.integers(0, 40))
    random = draw(st.randoms(use_true_random=False))
    return text, generate(matcher, budget, random.choice)


@settings(max_examples=100)
@given(runs("json_schema", [json.dumps(schema) for schema in SCHEMAS.values()]))
def test_json_is_valid_whatever_is_sampled_and_wherever_it_ends(run: tuple[str, str]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema, output = run
    jsonschema.validate(json.loads(output), json.loads(schema))


@given(runs("regex", REGEXES))
def test_regexes_match_whatever_is_sampled(run: tuple[str, str]) -> None:
    assert re.fullmatch(*run)


@settings(max_examples=12)
@given(runs("lark", [LARK]))
def test_grammars_hold_whatever_is_sampled(run: tuple[str, str]) -> None:
    _, output = run
    assert output.count("<") == 2 * output.count("</end>")
    assert re.fullmatch(r"(<[a-z]{3,5}>|</end>|[0-9]+)+", output)


@given(runs("choice", ['["a", "ab", "say \\"é\\"", "line\\nbreak"]']))
def test_choices(run: tuple[str, str]) -> None:
    choices, output = run
    assert output in json.loads(choices)


@given(runs("json_object", [""]))
def test_json_objects(run: tuple[str, str]) -> None:
    assert isinstance(json.loads(run[1]), dict)


def test_a_model_that_only_opens_brackets_is_stopped_in_time() -> None:
    opening = [TOKENIZER.vocab_size - len(EXTRA) + EXTRA.index(b"[["), ord("["), ord("{")]

    def pick(ids: list[int]) -> int:
        return next((i for i in opening if i in ids), ids[0])

    for budget in range(1, 80):
        output = generate(COMPILER.compile("json_schema", "{}"), budget, pick)
        json.loads(output)
    assert output.startswith("[[[[[[[[[[[[")


def test_what_is_begun_late_must_still_fit() -> None:
    matcher = COMPILER.compile("json_schema", json.dumps(SCHEMAS["late_cost"]))
    begin = b'{"id":0,"all":{'
    shortest = len(begin) + 40

    def written(budget: int) -> str:
        steps = iter(begin)
        return generate(
            COMPILER.compile("json_schema", json.dumps(SCHEMAS["late_cost"])),
            budget,
            lambda ids: next(steps, ids[0]),
        )

    assert json.loads(written(matcher.min_tokens_to_finish + 4)) == {"id": 0}
    assert len(json.loads(written(shortest + 60))["all"]) == 8


def test_the_end_token_is_allowed_only_when_complete() -> None:
    eos = TOKENIZER.eos_token_ids[0]
    matcher = COMPILER.compile("regex", "ab?")
    assert eos not in allowed(matcher)
    assert not matcher.accept(eos)
    assert matcher.accept(ord("a"))
    assert eos in allowed(matcher)
    assert not matcher.finished
    assert matcher.accept(ord("b"))
    assert matcher.finished
    assert allowed(matcher) == [eos]


def test_a_token_that_is_not_allowed_is_replaced() -> None:
    matcher = COMPILER.compile("regex", "[0-9]x")
    assert not matcher.accept(ord("z"))
    chosen = matcher.choose(ord("z"), 5)
    assert chr(chosen).isdigit()
    assert matcher.choose(TOKENIZER.eos_token_ids[0], 4) == ord("x")


def test_a_closing_completes_the_output() -> None:
    matcher = COMPILER.compile("json_schema", json.dumps(SCHEMAS["nested"]))
    assert len(matcher.closing()) == matcher.min_tokens_to_finish
    for byte in b'{"items": [{"id": 7, "kind": "al':
        assert matcher.accept(byte)
    output = b'{"items": [{"id": 7, "kind": "al' + b"".join(
        map(TOKENIZER.token_bytes, matcher.closing())
    )
    assert len(json.loads(output)["items"]) == 2


def test_too_small_a_budget_is_refused_with_the_minimum() -> None:
    matcher = COMPILER.compile("regex", "[cd]{9}é")
    least = matcher.min_tokens_to_finish
    assert 6 <= least <= 10  # cc cc cc cc c é, or in smaller steps
    COMPILER.check_budget(matcher, least)
    with pytest.raises(GrammarError, match=f"takes {least} tokens") as error:
        COMPILER.check_budget(matcher, least - 1)
    assert error.value.param == "max_tokens"


def test_matchers_of_one_grammar_are_independent() -> None:
    first, second = (COMPILER.compile("regex", "ab|cd") for _ in range(2))
    assert first.accept(ord("a"))
    assert second.accept(ord("c"))
    assert (allowed(first), allowed(second)) == ([ord("b")], [ord("d")])


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("json_schema", "nope", "the JSON schema is not valid JSON"),
        ("json_schema", "[" * 9999, "the JSON schema is not valid JSON"),
        ("json_schema", "[]", "is a list; it must be an object"),
        ("json_schema", "false", "Unsatisfiable schema"),
        ("json_schema", '{"type": "integer", "minimum": 3, "maximum": 2}', "Unsatisfiable"),
        ("json_schema", '{"allOf": [{"type": "string"}, {"type": "null"}]}', "Unsatisfiable"),
        ("json_schema", '{"enum": []}', "Unsatisfiable"),
        ("json_schema", '{"type": "strnig"}', "Invalid type: strnig"),
        ("json_schema", '{"not": {}}', "Unimplemented keys"),
        ("json_schema", '{"type": "string", "format": "zip"}', "Unknown format"),
        ("json_schema", '{"$ref": "#"}', "no output satisfies this json_schema"),
        ("json_schema", '{"title": "\\ud800", "type": "string"}', "cannot be used"),
        ("json_schema", '{"items":' * 200 + "{}" + "}" * 200, "recursion limit"),
        ("regex", "a(?=b)", "look-around"),
        ("regex", r"(a)\1", "backreferences are not supported"),
        ("regex", "[a", "unclosed character class"),
        ("regex", "(" * 5000 + ")" * 5000, "invalid regex"),
        ("regex", "[^\\x00-\\U0010FFFF]", "no output satisfies this regex"),
        ("regex", "\ud800", "cannot be used"),
        ("regex", "a" * 70_000, "at most 65536 are allowed"),
        ("choice", "[]", "a choice is a JSON array"),
        ("choice", '["a", 1]', "a choice is a JSON array"),
        ("choice", "a|b", "the choice is not valid JSON"),
        ("lark", "start: foo", "unknown name"),
        ("lark", "", "Empty grammar"),
        ("lark", "start: " + "(" * 5000 + '"a"' + ")" * 5000, "too deeply nested"),
        ("lark", 'start: a\na: a "x"', "no output satisfies this lark"),
        ("gbnf", "root", "grammar kind 'gbnf' is unknown"),
    ],
)
def test_what_cannot_be_used_says_why(kind: str, text: str, message: str) -> None:
    with pytest.raises(GrammarError, match=message) as error:
        COMPILER.compile(kind, text)
    assert len(str(error.value)) < 600


def test_a_schema_without_end_is_refused() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    with pytest.raises(GrammarError, match="objects that require themselves"):
        COMPILER.compile("json_schema", json.dumps(schema))


def test_a_model_without_end_token_is_refused() -> None:
    with pytest.raises(GrammarError, match="has no end token"):
        GrammarCompiler(TOKENIZER, VOCAB, ())


def test_a_grammar_that_is_held_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    held = COMPILER.compiled("regex", "[xyz]{3}")
    for i in range(70):  # more than are remembered anyway
        COMPILER.compiled("regex", f"a{{{i + 1}}}")

    def refuse(*_: object) -> None:
        raise GrammarError("compiled again")

    monkeypatch.setattr(COMPILER, "_compile", refuse)
    assert COMPILER.compiled("regex", "[xyz]{3}") is held
    COMPILER.compile("regex", "a{70}")
    with pytest.raises(GrammarError, match="compiled again"):
        COMPILER.compile("regex", "a{1}")


def test_compiling_tells_how_long_it_has_worked() -> None:
    worked: list[float] = []
    schema = {"type": "object", "properties": {"paced": {"type": "string"}}, "required": ["paced"]}
    COMPILER.compiled("json_schema", json.dumps(schema), worked.append)
    assert worked
    assert all(0.0 <= seconds < 2.0 for seconds in worked)


def test_what_was_compiled_is_known() -> None:
    assert COMPILER.known("regex", "known [0-9]{3}") is None
    compiled = COMPILER.compiled("regex", "known [0-9]{3}")
    assert COMPILER.known("regex", "known [0-9]{3}") is compiled
    assert COMPILER.known("choice", "known [0-9]{3}") is None
    whatever = COMPILER.compiled("json_object", "")
    assert COMPILER.known("json_object", "is ignored") is whatever
