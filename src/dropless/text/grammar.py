"""Output that follows a JSON schema, a regular expression, a choice or a grammar.

Sampling is restricted to the tokens that llguidance allows next. An output is valid even when its
token budget ends: a matcher always knows a short closing, tokens that complete the output from
where it stands, and accepts a sampled token only if a closing still fits into the budget after it.
Otherwise the next token of the closing it knows takes the sampled one's place.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import llguidance
import numpy as np
import regex
from numpy.typing import NDArray

from dropless.errors import GrammarError
from dropless.text.grammar_closing import ClosingSearch, Pace, SearchLimits
from dropless.text.tokenizer import Tokenizer
from dropless.text.tool_calls import OPEN, unmarked_call
from dropless.text.tool_grammar import Function, ToolGrammar
from dropless.text.tool_matcher import CompiledTools, ToolMatcher

MAX_GRAMMAR_CHARS = 64 * 1024
MAX_CHOICES = 4096
_CACHED_GRAMMARS = 64
_MAX_REASON_CHARS = 400
_LARGE_SCHEMA = 8192  # characters; one that may have more properties than can be followed
# Counted in states, so that what is written does not depend on how fast the machine is; the
# seconds only end what runs away.
_AT_START = SearchLimits(tokens=4096, states=100_000, seconds=2.0)
_PER_TOKEN = SearchLimits(tokens=1024, states=1200, seconds=1.0)
_HASTY = SearchLimits(tokens=8, states=50, seconds=1.0)  # where searching has failed too often
_MAX_FAILED_SEARCHES = 8  # of one output: they take time from all others
# Without a bound a small model may write spaces until its budget ends.
_JSON_OPTIONS = {"whitespace_pattern": r"[ \n\r\t]{1,40}"}


@dataclass(frozen=True)
class _Grammar:
    """A compiled grammar: the matcher at the start, a closing from there, and what its matchers
    remember of closings from elsewhere."""

    matcher: Any
    closing: list[int]
    memory: dict[int, list[int]]


class Matcher:
    """Follows one output through its grammar. Not thread-safe; one per sequence."""

    restricts = True  # some tokens are not allowed next

    def __init__(self, grammar: _Grammar, search: ClosingSearch, eos_token_id: int) -> None:
        self.min_tokens_to_finish = len(grammar.closing)
        self._matcher = grammar.matcher.deep_copy()
        self._memory = grammar.memory
        self._search = search
        self._eos = eos_token_id
        self._closing = list(grammar.closing)
        self._closing_fits = True  # whether _closing belongs to the present state
        self._failed_searches = 0

    @property
    def finished(self) -> bool:
        """Whether nothing but an end token may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def accepting(self) -> bool:
        """Whether the output is complete as it stands (it may still be allowed to go on)."""
        return bool(self._matcher.is_accepting())

    def fill_mask(self, row: NDArray[np.uint32]) -> None:
        """Write the tokens allowed next: bit i % 32 of word i // 32 for token i.

        End tokens are allowed exactly when the output is complete. `row` is contiguous, of
        ceil(model_vocab_size / 32) words.

        Raises:
            GrammarError: the grammar became too complex at this point.
        """
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        self._check_error()

    def accept(self, token_id: int) -> bool:
        """Follow one token without a budget; False, and no change, if it is not allowed."""
        if self._matcher.try_consume_tokens([token_id]) != 1:
            return False
        self._closing = self._search.after(self._closing, token_id)
        self._closing_fits = False
        return True

    def closing(self) -> list[int]:
        """Tokens that complete the output from here, without the end token; [] if complete.

        Raises:
            GrammarError: none was found, which after `accept` alone is possible.
        """
        if not self._closing_fits:
            found = self._search.find(self._matcher, self._closing, self._memory, _AT_START)
            if found is None:
                raise GrammarError(
                    "the output cannot be completed from where it stands; simplify the grammar"
                )
            self._closing, self._closing_fits = found, True
        return list(self._closing)

    def choose(self, token_id: int, remaining: int) -> int:
        """Follow `token_id` if the output can still be completed afterwards, else the closing.

        Most tokens leave the known closing as it is or take its first token away, which is checked
        in microseconds; a search is needed where a new part of the output begins.

        Args:
            token_id: the sampled token.
            remaining: tokens that may still be generated, this one included. It must be at least
                `min_tokens_to_finish` at the start and fall by one with every call.

        Returns:
            The token that was followed and belongs into the output.

        Raises:
            GrammarError: the grammar became too complex at this point.
        """
        closing = self.closing()
        trial = self._matcher.deep_copy()
        if trial.try_consume_tokens([token_id]) == 1:
            rest = self._search.after(closing, token_id)
            limits = _PER_TOKEN if self._failed_searches < _MAX_FAILED_SEARCHES else _HASTY
            found = self._search.find(trial, rest, self._memory, limits)
            self._failed_searches += found is None
            if found is not None and len(found) < remaining:
                self._matcher, self._closing = trial, found
                return token_id
        chosen = closing[0] if closing else self._eos
        self._closing = closing[1:]
        self._matcher.try_consume_tokens([chosen])
        self._check_error()
        return chosen

    def _check_error(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(
                f"the grammar cannot be followed any further: {_reason(self._matcher.get_error())}"
            )


OutputMatcher = Matcher | ToolMatcher
CompiledGrammar = _Grammar | CompiledTools


class GrammarCompiler:
    """Compiles grammars for one tokenizer; safe to use from several threads."""

    def __init__(
        self, tokenizer: Tokenizer, model_vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        """`model_vocab_size` is the width of the model's logits, `eos_token_ids` what may end an
        output.

        Raises:
            GrammarError: there is no end token to finish an output with.
        """
        ends = [i for i in eos_token_ids if i < model_vocab_size]
        if not ends:
            raise GrammarError(
                "this model has no end token, which constrained output needs; name one in "
                "generation_config.json",
                param=None,
            )
        pieces = [tokenizer.token_bytes(i) for i in range(model_vocab_size)]
        self._eos = ends[0]
        self._search = ClosingSearch(pieces, self._eos)
        self._ll_tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_TokenizerView(tokenizer, pieces, self._eos)),
            n_vocab=model_vocab_size,
            eos_token=ends,
        )
        self._latest: OrderedDict[tuple[str, str], CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()  # of the latest
        self._held: WeakValueDictionary[tuple[str, str], CompiledGrammar] = WeakValueDictionary()
        self._token_bytes = tokenizer.token_bytes

    def compile(self, kind: str, text: str) -> OutputMatcher:
        """A matcher at the start of an output.

        Args:
            kind: json_object, json_schema, regex, choice, lark or tool_calls.
            text: the schema, expression or grammar; for choice a JSON array of strings, for
                tool_calls an encoded ToolGrammar; ignored for json_object.

        Raises:
            GrammarError: not understood, not supported, too large, or nothing satisfies it.
        """
        return self.start(self.compiled(kind, text))

    def start(self, compiled: CompiledGrammar) -> OutputMatcher:
        """A matcher at the start of an output."""
        if isinstance(compiled, CompiledTools):
            return ToolMatcher(compiled, self._token_bytes, self._search.spell, self._eos)
        return Matcher(compiled, self._search, self._eos)

    def compiled(self, kind: str, text: str, pace: Pace | None = None) -> CompiledGrammar:
        """What `compile` is quick with: it remembers the latest grammars, and those that somebody
        still holds. `pace` may slow the work down for the sake of other threads.

        Raises:
            GrammarError: as `compile`.
        """
        name = _name_of(kind, text)
        compiled = self._held.get(name)
        if compiled is None:
            compiled = self._held[name] = self._compile(*name, pace)
        with self._lock:
            self._latest[name] = compiled
            self._latest.move_to_end(name)
            if len(self._latest) > _CACHED_GRAMMARS:
                self._latest.popitem(last=False)
        return compiled

    def known(self, kind: str, text: str) -> CompiledGrammar | None:
        """What `compiled` would give without compiling, if it has that."""
        return self._held.get(_name_of(kind, text))

    def check_budget(self, matcher: OutputMatcher, max_tokens: int) -> None:
        """Refuse a budget in which no valid output fits.

        Raises:
            GrammarError: naming the smallest `max_tokens` that is enough.
        """
        if max_tokens < matcher.min_tokens_to_finish:
            raise GrammarError(
                f"max_tokens is {max_tokens}, but the shortest output found for this "
                f"response_format takes {matcher.min_tokens_to_finish} tokens; set max_tokens to "
                "at least that",
                param="max_tokens",
            )

    def _compile(self, kind: str, text: str, pace: Pace | None) -> CompiledGrammar:
        if kind == "tool_calls":
            return self._compile_tools(text)
        if len(text) > MAX_GRAMMAR_CHARS:
            raise GrammarError(
                f"the {kind} has {len(text)} characters; at most {MAX_GRAMMAR_CHARS} are allowed"
            )
        try:
            matcher = llguidance.LLMatcher(self._ll_tokenizer, _source(kind, text), log_level=0)
        except (ValueError, TypeError) as error:  # for one a lone surrogate in the text
            raise GrammarError(f"the {kind} cannot be used: {_reason(str(error))}") from error
        if matcher.is_error():
            raise GrammarError(f"the {kind} cannot be used: {_reason(matcher.get_error())}")
        memory: dict[int, list[int]] = {}
        closing = self._search.find(matcher, [], memory, replace(_AT_START, pace=pace))
        if closing is None:
            raise GrammarError(
                f"no output satisfies this {kind}, or none within {_AT_START.tokens} tokens was "
                f"found in {_AT_START.seconds:g} s; check for contradictions and for objects that "
                "require themselves, or simplify it"
            )
        return _Grammar(matcher, closing, memory)

    def _compile_tools(self, text: str) -> CompiledTools:
        if len(text) > MAX_GRAMMAR_CHARS:
            raise GrammarError(
                f"the names and parameters of the tools have {len(text)} characters; at most "
                f"{MAX_GRAMMAR_CHARS} are allowed",
                param="tools",
            )
        if self._search.spell(OPEN.encode()) is None:
            raise GrammarError(f"this model has no tokens to write {OPEN} with", param="tools")
        tools = ToolGrammar.decode(text)
        try:
            source = llguidance.LLMatcher.grammar_from_lark(tools.lark(_JSON_OPTIONS))
            matcher = llguidance.LLMatcher(self._ll_tokenizer, source, log_level=0)
        except (ValueError, TypeError) as error:
            raise GrammarError(tools.problem(str(error)), param="tools") from error
        if matcher.is_error():
            raise GrammarError(tools.problem(matcher.get_error()), param="tools")
        for function in tools.functions:
            if len(json.dumps(function.schema)) > _LARGE_SCHEMA:
                self._probe(matcher.deep_copy(), function)
        names = (function.name for function in tools.functions)
        unmarked = regex.compile(unmarked_call(names).encode())
        return CompiledTools(matcher, tools.text_first, unmarked)

    def _probe(self, matcher: Any, function: Function) -> None:
        """Refuse a schema that is too complex where its arguments begin, before anybody waits."""
        ids = self._search.spell(f'{OPEN}{{"name":"{function.name}","arguments":{{'.encode())
        if ids is not None and matcher.try_consume_tokens(ids) == len(ids):
            matcher.compute_bitmask()
        if matcher.is_error():
            raise GrammarError(
                f"the parameters of the function {function.name!r} cannot be used: "
                f"{_reason(matcher.get_error())}",
                param="tools",
            )


class _TokenizerView:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, pieces: Sequence[bytes], eos: int) -> None:
        control = {
            i: text
            for text, i in tokenizer.control_tokens.items()
            if i < len(pieces) and not pieces[i]
        }
        self.eos_token_id = eos
        self.bos_token_id = tokenizer.bos_token_id
        self.special_token_ids = sorted(control)
        self.tokens = [
            control[i].encode("utf-8") if i in control else piece for i, piece in enumerate(pieces)
        ]
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        """Token ids whose bytes joined are those of `text`."""
        if not self._tokenizer.leading_space:
            return self._tokenizer.encode(text)
        # A line break in front takes the leading space that this tokenizer adds.
        before = self._tokenizer.encode("\n")
        return self._tokenizer.encode("\n" + text)[len(before) :]


def _name_of(kind: str, text: str) -> tuple[str, str]:
    return kind, "" if kind == "json_object" else text


def _source(kind: str, text: str) -> str:
    """llguidance's form of a grammar."""
    build = llguidance.LLMatcher
    source: str
    if kind == "json_object":
        source = build.grammar_from_json_schema('{"type": "object"}', overrides=_JSON_OPTIONS)
    elif kind == "json_schema":
        schema = _parse_json(text, "the JSON schema")
        if not isinstance(schema, dict | bool):
            raise GrammarError(
                f"the JSON schema is a {type(schema).__name__}; it must be an object"
            )
        schema = schema if isinstance(schema, dict) else {"allOf": [schema]}
        source = build.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)
    elif kind == "regex":
        source = build.grammar_from_regex(text)
    elif kind == "choice":
        source = build.grammar_from_lark(f"start: {_alternatives(text)}")
    elif kind == "lark":
        source = build.grammar_from_lark(text)
    else:
        raise GrammarError(
            f"grammar kind {kind!r} is unknown; use json_object, json_schema, regex, choice or lark"
        )
    return source


def _alternatives(text: str) -> str:
    choices = _parse_json(text, "the choice")
    if (
        not isinstance(choices, list)
        or not choices
        or len(choices) > MAX_CHOICES
        or not all(isinstance(choice, str) and choice for choice in choices)
    ):
        raise GrammarError(
            f"a choice is a JSON array of 1 to {MAX_CHOICES} non-empty strings, not {text[:80]!r}"
        )
    return " | ".join(_lark_strings(choices))


def _lark_strings(texts: Iterable[str]) -> Iterable[str]:
    return (json.dumps(text, ensure_ascii=False) for text in texts)


def _parse_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"{what} is not valid JSON: {error}") from error


def _reason(error: str) -> str:
    """The part of llguidance's message that concerns the caller."""
    text = " ".join(error.split("<state>")[0].split())
    if len(text) <= _MAX_REASON_CHARS:
        return text
    half = _MAX_REASON_CHARS // 2  # the place stands first, the cause last
    return f"{text[:half]} ... {text[-half:]}"
