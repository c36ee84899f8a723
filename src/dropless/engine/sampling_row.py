"""What the sampler knows of one request."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dropless.engine.logit_edits import TokenCounts
from dropless.engine.sampling_params import SamplingParams
from dropless.errors import GrammarError
from dropless.text.grammar import OutputMatcher


def is_plain(params: SamplingParams) -> bool:
    """Whether each token is simply the likeliest one, and nothing else is asked of the sampler."""
    return (
        params.greedy
        and not params.follows_output
        and not params.logit_bias
        and not params.min_tokens
        and params.logprobs is None
    )


class SamplingRow:
    """A request's parameters and what follows from its output so far."""

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        *,
        prompt: Sequence[int] = (),
        generated: Sequence[int] = (),
        max_new_tokens: int = 2**31,
        matcher: OutputMatcher | None = None,
        end_token_ids: Sequence[int] = (),
        error: GrammarError | None = None,
    ) -> None:
        """`generated` is not empty when the request starts again after a preemption; `matcher`
        has followed it already. `end_token_ids` are what `min_tokens` forbids. `error` says why
        there is no matcher though there is a grammar."""
        self.params = params
        self.seed = seed
        self.matcher = matcher
        self.error = error
        self.num_sampled = len(generated)  # counted when a token is launched, known or not
        self.max_new_tokens = max_new_tokens
        self.counts = TokenCounts(prompt, generated) if params.penalises else None
        self.plain = is_plain(params)
        self._end_ids = list(end_token_ids)
        self._bias_ids = list(params.logit_bias)
        self._bias_values = list(params.logit_bias.values())

    def biases(self) -> tuple[list[int], list[float]]:
        """Token ids and what to add to their logits for the next token."""
        too_early = self.num_sampled < self.params.min_tokens
        if not too_early or (self.matcher is not None and self.matcher.finished):
            return self._bias_ids, self._bias_values
        forbidden = [-np.inf] * len(self._end_ids)
        return self._bias_ids + self._end_ids, self._bias_values + forbidden

    def choose(self, token_id: int) -> int:
        """The token that enters the output after it was sampled: `token_id`, or what its grammar
        puts in its place.

        Raises:
            GrammarError: the grammar became too complex.
        """
        if self.matcher is not None:
            remaining = self.max_new_tokens - self.num_sampled + 1
            token_id = self.matcher.choose(token_id, remaining)
        if self.counts is not None:
            self.counts.add(token_id)
        return token_id
