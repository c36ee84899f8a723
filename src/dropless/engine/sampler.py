"""Logits to tokens: one batched pass over all rows, whatever each of them asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dropless.engine.logit_edits import (
    TokenCounts,
    add_biases,
    apply_penalties,
    has_penalties,
    keep_allowed,
)
from dropless.engine.logprobs import token_logprobs
from dropless.engine.messages import TokenLogprob
from dropless.engine.sampling_params import SamplingParams
from dropless.engine.truncation import lowest_kept
from dropless.engine.uniforms import uniforms
from dropless.errors import GrammarError
from dropless.text.grammar import Matcher

_LOWEST_TEMPERATURE = 1e-6  # below it float32 divides by zero; the result is greedy anyway
_FAILED = -1


class SamplingRow:
    """What the sampler knows of one request: its parameters and what it has generated."""

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        *,
        prompt: Sequence[int] = (),
        generated: Sequence[int] = (),
        max_new_tokens: int = 2**31,
        matcher: Matcher | None = None,
        end_token_ids: Sequence[int] = (),
    ) -> None:
        """`generated` is not empty when the request starts again after a preemption; `matcher`
        has followed it already. `end_token_ids` are what `min_tokens` forbids."""
        self.params = params
        self.seed = seed
        self.matcher = matcher
        self.num_generated = len(generated)
        self.max_new_tokens = max_new_tokens
        self.counts = TokenCounts(prompt, generated) if has_penalties(params) else None
        self.plain = (
            params.greedy
            and self.counts is None
            and not params.logit_bias
            and not params.min_tokens
            and params.logprobs is None
            and matcher is None
        )
        self._end_ids = list(end_token_ids)
        self._bias_ids = list(params.logit_bias)
        self._bias_values = list(params.logit_bias.values())

    def biases(self) -> tuple[list[int], list[float]]:
        """Token ids and what to add to their logits for the next token."""
        too_early = self.num_generated < self.params.min_tokens
        if not too_early or (self.matcher is not None and self.matcher.finished):
            return self._bias_ids, self._bias_values
        forbidden = [-np.inf] * len(self._end_ids)
        return self._bias_ids + self._end_ids, self._bias_values + forbidden

    def choose(self, token_id: int) -> int:
        """The token that enters the output: `token_id`, or what its grammar puts in its place.

        Raises:
            GrammarError: the grammar became too complex.
        """
        if self.matcher is not None:
            token_id = self.matcher.choose(token_id, self.max_new_tokens - self.num_generated)
        if self.counts is not None:
            self.counts.add(token_id)
        self.num_generated += 1
        return token_id


@dataclass(slots=True)
class Sampled:
    """Aligned with the rows; None where a row failed, with the reason in `errors`."""

    token_ids: list[int | None] = field(default_factory=list)
    logprobs: list[TokenLogprob | None] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)


class Sampler:
    """Order of effects: penalties, bias, forbidden tokens, grammar, temperature, top-k, top-p,
    min-p. `unsampleable_ids` have no token behind them and are never chosen."""

    def __init__(self, unsampleable_ids: Sequence[int], device: torch.device) -> None:
        self._unsampleable = torch.tensor(unsampleable_ids, dtype=torch.int64, device=device)
        # Bounds the temporary copies: 16 MiB each on a CPU, 256 MiB on a GPU.
        self._chunk_elements = 1 << (22 if device.type == "cpu" else 26)

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Sampled:
        """One token for each row, which the row takes note of.

        Args:
            logits: [n, vocab] float32; overwritten.
            rows: n rows.
        """
        sampled = Sampled()
        size = max(1, self._chunk_elements // logits.shape[1])
        for start in range(0, len(rows), size):
            part = self._sample(logits[start : start + size], rows[start : start + size])
            sampled.token_ids += part.token_ids
            sampled.logprobs += part.logprobs
            sampled.errors |= {start + i: error for i, error in part.errors.items()}
        return sampled

    def _sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Sampled:
        asking = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
        own_logits = logits[asking] if asking else None  # a copy, before any change
        if len(self._unsampleable):
            logits.index_fill_(1, self._unsampleable, -torch.inf)
        errors = {} if all(row.plain for row in rows) else _edit(logits, rows)
        best, chosen = logits.max(dim=-1)
        drawing = [i for i, row in enumerate(rows) if not row.params.greedy]
        if drawing:
            chosen[drawing] = _draw(logits[drawing], best[drawing], [rows[i] for i in drawing])
        candidates: list[int] = chosen.masked_fill_(~best.isfinite(), _FAILED).tolist()
        if _FAILED in candidates:
            errors = _bad_logits(best.tolist()) | errors
        sampled = Sampled(_follow(rows, candidates, errors), [None] * len(rows), errors)
        if own_logits is not None:
            _report(own_logits, rows, asking, sampled)
        return sampled


def _edit(logits: Tensor, rows: Sequence[SamplingRow]) -> dict[int, str]:
    """Penalties, biases and grammars, in place. Returns the errors of rows whose grammar failed."""
    penalised = [
        (i, row.params, row.counts) for i, row in enumerate(rows) if row.counts is not None
    ]
    if penalised:
        apply_penalties(logits, *zip(*penalised, strict=True))
    biased = [(i, *biases) for i, row in enumerate(rows) if (biases := row.biases())[0]]
    if biased:
        add_biases(logits, *zip(*biased, strict=True))
    constrained = [(i, row.matcher) for i, row in enumerate(rows) if row.matcher is not None]
    if not constrained:
        return {}
    errors = {}
    masks = np.zeros((len(constrained), (logits.shape[1] + 31) // 32), dtype=np.uint32)
    for (i, matcher), mask in zip(constrained, masks, strict=True):
        try:
            matcher.fill_mask(mask)
        except GrammarError as error:
            errors[i] = str(error)
    keep_allowed(logits, [i for i, _ in constrained], masks)
    return errors


def _draw(logits: Tensor, best: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """One token id for each row by inverting its cumulative distribution, in order of ids.

    Args:
        logits: [n, vocab], overwritten.
        best: [n], each row's greatest logit.
    """
    params = [row.params for row in rows]
    temperatures = [max(p.temperature, _LOWEST_TEMPERATURE) for p in params]
    scores = logits.sub_(best.unsqueeze(1))
    scores.div_(torch.tensor(temperatures, device=logits.device).unsqueeze(1))
    cut = lowest_kept(
        scores,
        np.array([p.top_k for p in params], dtype=np.int64),
        np.array([p.top_p for p in params], dtype=np.float64),
        np.array([p.min_p for p in params], dtype=np.float64),
    )
    dropped = None if cut is None else scores < cut.unsqueeze(1)
    weights = scores.exp_()
    if dropped is not None:
        weights.masked_fill_(dropped, 0.0)
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    points = uniforms([row.seed for row in rows], [row.num_generated for row in rows])
    targets = torch.from_numpy(points).to(logits.device) * cumulative[:, -1]
    found = torch.searchsorted(cumulative, targets.unsqueeze(1), right=True).squeeze(1)
    return found.clamp_(max=logits.shape[1] - 1)  # beyond the end only where logits are NaN


def _bad_logits(best: Sequence[float]) -> dict[int, str]:
    """Why rows whose greatest logit is not finite have no token."""
    errors = {}
    for i, value in enumerate(best):
        if value == -np.inf:
            errors[i] = (
                "no token is left to choose from: logit_bias, min_tokens and the grammar together "
                "forbid them all"
            )
        elif not np.isfinite(value):
            errors[i] = (
                f"the model's logits are not finite ({value}); if other requests fail too, the "
                "weights are damaged or overflow in this dtype"
            )
    return errors


def _follow(
    rows: Sequence[SamplingRow], candidates: Sequence[int], errors: dict[int, str]
) -> list[int | None]:
    """The token that each row takes; adds to `errors` the rows whose grammar fails now."""
    token_ids: list[int | None] = [None] * len(rows)
    for i, (row, candidate) in enumerate(zip(rows, candidates, strict=True)):
        if i in errors:
            continue
        try:
            token_ids[i] = row.choose(candidate)
        except GrammarError as error:
            errors[i] = str(error)
    return token_ids


def _report(
    own_logits: Tensor, rows: Sequence[SamplingRow], asking: Sequence[int], sampled: Sampled
) -> None:
    """Fill in the log probabilities of the rows `asking` for them, of which `own_logits` are."""
    wanted = [
        (k, i, token_id, rows[i].params.logprobs or 0)
        for k, i in enumerate(asking)
        if (token_id := sampled.token_ids[i]) is not None
    ]
    if not wanted:
        return
    places, indices, token_ids, num_top = zip(*wanted, strict=True)
    entries = token_logprobs(own_logits[list(places)], token_ids, num_top)
    for i, entry in zip(indices, entries, strict=True):
        sampled.logprobs[i] = entry
