"""Logits to tokens: one batched pass over all rows, whatever each of them asks for.

The pass is launched without waiting for the device. What the host does with the tokens comes later,
in `Sampling.finish`; only rows whose parameters follow the output need that before their next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dropless.engine.logit_edits import add_biases, apply_penalties, keep_allowed
from dropless.engine.logprobs import TokenLogprobs
from dropless.engine.masses import masses
from dropless.engine.messages import TokenLogprob
from dropless.engine.sampling_row import SamplingRow
from dropless.engine.transfer import Fetched, to_device
from dropless.engine.truncation import lowest_kept
from dropless.engine.uniforms import uniforms
from dropless.errors import DroplessError, EngineError, GrammarError, InvalidRequestError

_LOWEST_TEMPERATURE = 1e-6  # below it float32 divides by zero; the result is greedy anyway


@dataclass(slots=True)
class Sampled:
    """Aligned with the rows; None where a row failed, with the reason in `errors`. `replaced` has
    the tokens that grammars put in the place of what was sampled, by row."""

    token_ids: list[int | None] = field(default_factory=list)
    logprobs: list[TokenLogprob | None] = field(default_factory=list)
    errors: dict[int, DroplessError] = field(default_factory=dict)
    replaced: dict[int, int] = field(default_factory=dict)
    grammar_finished: set[int] = field(default_factory=set)  # rows whose grammar allows no more


class Sampling:
    """Tokens on their way from the device, one for each row."""

    def __init__(
        self,
        rows: Sequence[SamplingRow],
        token_ids: Tensor,
        best: Tensor,
        errors: Mapping[int, DroplessError] = {},
        own_logits: Tensor | None = None,
    ) -> None:
        """
        Args:
            rows: n rows.
            token_ids: [n] int64, each in the vocabulary even where the row has failed.
            best: [n] float32, each row's greatest logit, not finite where the row has failed.
            errors: of rows that have failed already.
            own_logits: [rows that ask for log probabilities, vocab] float32, None if none does.
        """
        self.token_ids = token_ids
        self._rows = rows
        self._errors = errors
        self._fetched = Fetched(token_ids, best)
        self._asking = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
        self._own_logits = own_logits
        self._logprobs: TokenLogprobs | None = None
        if own_logits is not None and all(rows[i].matcher is None for i in self._asking):
            [asking] = to_device(token_ids.device, np.array(self._asking, dtype=np.int64))
            self._logprobs = self._launch_logprobs(own_logits, token_ids[asking])

    def finish(self) -> Sampled:
        """Wait for the tokens, which the rows take note of."""
        token_ids, best = self._fetched.wait()
        errors = _bad_logits(best.numpy()) | dict(self._errors)
        sampled = Sampled(token_ids.tolist(), [None] * len(self._rows), errors)
        for i, row in enumerate(self._rows):
            if row.params.follows_output and i not in errors:
                self._follow(i, row, sampled)
        for i in errors:
            sampled.token_ids[i] = None
        self._report(sampled)
        return sampled

    def _follow(self, i: int, row: SamplingRow, sampled: Sampled) -> None:
        candidate = sampled.token_ids[i]
        assert candidate is not None
        try:
            chosen = row.choose(candidate)
        except GrammarError as error:
            sampled.errors[i] = error
            return
        if chosen != candidate:
            sampled.token_ids[i] = sampled.replaced[i] = chosen
        if row.matcher is not None and row.matcher.finished:
            sampled.grammar_finished.add(i)

    def _report(self, sampled: Sampled) -> None:
        if self._own_logits is None:
            return
        if self._logprobs is None:  # a grammar had the last word
            ids = np.array([sampled.token_ids[i] or 0 for i in self._asking], dtype=np.int64)
            [token_ids] = to_device(self._own_logits.device, ids)
            self._logprobs = self._launch_logprobs(self._own_logits, token_ids)
        for i, entry in zip(self._asking, self._logprobs.wait(), strict=True):
            if i not in sampled.errors:
                sampled.logprobs[i] = entry

    def _launch_logprobs(self, own_logits: Tensor, token_ids: Tensor) -> TokenLogprobs:
        num_top = [self._rows[i].params.logprobs or 0 for i in self._asking]
        return TokenLogprobs(own_logits, token_ids, num_top)


class Sampler:
    """Order of effects: penalties, bias, forbidden tokens, grammar, temperature, top-k, top-p,
    min-p. `unsampleable_ids` have no token behind them and are never chosen."""

    def __init__(self, unsampleable_ids: Sequence[int], device: torch.device) -> None:
        self._unsampleable = torch.tensor(unsampleable_ids, dtype=torch.int64, device=device)
        # Bounds the temporary copies: 16 MiB each on a CPU, 256 MiB on a GPU.
        self._chunk_elements = 1 << (22 if device.type == "cpu" else 26)

    def launch(self, logits: Tensor, rows: Sequence[SamplingRow]) -> list[Sampling]:
        """One token for each row, which the row counts. In parts, so that memory is bounded.

        Args:
            logits: [n, vocab] float32; overwritten.
            rows: n rows. Those that follow their output have finished their last token.
        """
        size = max(1, self._chunk_elements // logits.shape[1])
        return [
            self._launch(logits[start : start + size], rows[start : start + size])
            for start in range(0, len(rows), size)
        ]

    def likeliest(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The greatest logit [n] of each row of `logits` [n, vocab], which are overwritten, and the
        token ids [n] int64 where it stands. A NaN counts as the greatest."""
        if len(self._unsampleable):
            logits.index_fill_(1, self._unsampleable, -torch.inf)
        best, token_ids = logits.max(dim=-1)
        return best, token_ids

    def _launch(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Sampling:
        asking = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
        own_logits = _copy_rows(logits, asking) if asking else None  # before any change
        errors = {} if all(row.plain for row in rows) else _edit(logits, rows)
        best, token_ids = self.likeliest(logits)
        drawing = [i for i, row in enumerate(rows) if not row.params.greedy]
        if drawing:
            [at] = to_device(logits.device, np.array(drawing, dtype=np.int64))
            drawn = _draw(logits[at], best[at], [rows[i] for i in drawing])
            token_ids = token_ids.index_copy(0, at, drawn)
        for row in rows:
            row.num_sampled += 1
        return Sampling(rows, token_ids, best, errors, own_logits)


def _copy_rows(logits: Tensor, rows: Sequence[int]) -> Tensor:
    [at] = to_device(logits.device, np.array(rows, dtype=np.int64))
    return logits[at]


def _edit(logits: Tensor, rows: Sequence[SamplingRow]) -> dict[int, DroplessError]:
    """Penalties, biases and grammars, in place. Returns the errors of rows whose grammar failed."""
    errors: dict[int, DroplessError] = {
        i: row.error for i, row in enumerate(rows) if row.error is not None
    }
    penalised = [
        (i, row.params, row.counts) for i, row in enumerate(rows) if row.counts is not None
    ]
    if penalised:
        apply_penalties(logits, *zip(*penalised, strict=True))
    biased = [(i, *biases) for i, row in enumerate(rows) if (biases := row.biases())[0]]
    if biased:
        add_biases(logits, *zip(*biased, strict=True))
    constrained = [
        (i, row.matcher)
        for i, row in enumerate(rows)
        if row.matcher is not None and row.matcher.restricts
    ]
    if not constrained:
        return errors
    masks = np.zeros((len(constrained), (logits.shape[1] + 31) // 32), dtype=np.uint32)
    for (i, matcher), mask in zip(constrained, masks, strict=True):
        try:
            matcher.fill_mask(mask)
        except GrammarError as error:
            errors[i] = error
    keep_allowed(logits, [i for i, _ in constrained], masks)
    return errors


def _draw(logits: Tensor, best: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """One token id for each row by inverting its cumulative distribution, in order of ids.

    Args:
        logits: [n, vocab], overwritten.
        best: [n], each row's greatest logit.
    """
    params = [row.params for row in rows]
    temperature, point = to_device(
        logits.device,
        np.array([max(p.temperature, _LOWEST_TEMPERATURE) for p in params], dtype=np.float32),
        uniforms([row.seed for row in rows], [row.num_sampled for row in rows]),
    )
    scores = logits.sub_(best.unsqueeze(1)).div_(temperature.unsqueeze(1))
    cut = lowest_kept(
        scores,
        np.array([p.top_k for p in params], dtype=np.int64),
        np.array([p.top_p for p in params], dtype=np.float64),
        np.array([p.min_p for p in params], dtype=np.float64),
    )
    if cut is not None:
        scores.masked_fill_(scores < cut.unsqueeze(1), -torch.inf)
    cumulative = masses(scores).cumsum_(dim=-1)
    total = cumulative[:, -1]
    targets = torch.minimum((point * total).to(torch.int64), total - 1)
    found = torch.searchsorted(cumulative, targets.unsqueeze(1), right=True).squeeze(1)
    return found.clamp_(max=logits.shape[1] - 1)  # beyond the end only where logits are NaN


def _bad_logits(best: np.ndarray) -> dict[int, DroplessError]:
    """Why rows whose greatest logit is not finite have no token."""
    errors: dict[int, DroplessError] = {}
    for i in np.flatnonzero(~np.isfinite(best)).tolist():
        if best[i] == -np.inf:
            errors[i] = InvalidRequestError(
                "no token is left to choose from: logit_bias, min_tokens and the grammar together "
                "forbid them all"
            )
        else:
            errors[i] = EngineError(
                f"the model's logits are not finite ({best[i]}); if other requests fail too, the "
                "weights are damaged or overflow in this dtype"
            )
    return errors
