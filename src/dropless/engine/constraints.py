"""What one model's vocabulary allows a request to ask for, and matchers for its grammar."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from dropless.engine.sampling_params import GrammarSpec, SamplingParams
from dropless.errors import GrammarError, InvalidRequestError
from dropless.text.grammar import CompiledGrammar, GrammarCompiler, OutputMatcher
from dropless.text.grammar_closing import Pace
from dropless.text.tokenizer import Tokenizer


class Constraints:
    """`tokenizer` is None for a model that has none: it takes token ids and no grammars."""

    def __init__(
        self, tokenizer: Tokenizer | None, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        """`vocab_size` is the width of the model's logits."""
        self.eos_token_ids = tuple(eos_token_ids)
        self.unsampleable_ids = tokenizer.unsampleable_ids(vocab_size) if tokenizer else []
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size

    def check(self, params: SamplingParams, max_new_tokens: int) -> CompiledGrammar | None:
        """Refuse what this model can never do. Returns the grammar, if there is one: while that is
        held, matchers for it need no compiling.

        Raises:
            InvalidRequestError: a token id that the model does not have.
            GrammarError: the grammar cannot be compiled, or no output fits into `max_new_tokens`.
        """
        for name in ("logit_bias", "stop_token_ids"):
            for token_id in getattr(params, name):
                if not 0 <= token_id < self.vocab_size:
                    raise InvalidRequestError(
                        f"{name} names the token id {token_id}; this model has 0 to "
                        f"{self.vocab_size - 1}",
                        param=name,
                    )
        if params.grammar is None:
            return None
        compiled = self.compile(params.grammar)
        self._compiler.check_budget(self._compiler.start(compiled), max_new_tokens)
        return compiled

    def compile(self, grammar: GrammarSpec, pace: Pace | None = None) -> CompiledGrammar:
        """May be called from any thread; `pace` as of `GrammarCompiler.compiled`.

        Raises:
            GrammarError: the grammar cannot be compiled.
        """
        return self._compiler.compiled(grammar.kind, grammar.text, pace)

    def known(self, grammar: GrammarSpec) -> CompiledGrammar | None:
        """The grammar, if nothing needs compiling for it: not even the vocabulary."""
        is_ready = "_compiler" in vars(self)
        return self._compiler.known(grammar.kind, grammar.text) if is_ready else None

    def matcher(self, grammar: GrammarSpec, generated: Sequence[int]) -> OutputMatcher:
        """A matcher that has followed `generated` already.

        Raises:
            GrammarError: the grammar cannot be compiled, or does not allow these tokens.
        """
        matcher = self._compiler.start(self.compile(grammar))
        for place, token_id in enumerate(generated):
            if not matcher.accept(token_id):
                raise GrammarError(
                    f"generated token {place} (id {token_id}) does not follow the grammar"
                )
        return matcher

    @cached_property
    def _compiler(self) -> GrammarCompiler:
        if self._tokenizer is None:
            raise GrammarError("this model has no tokenizer, which constrained output needs")
        return GrammarCompiler(self._tokenizer, self.vocab_size, self.eos_token_ids)
