"""What a request's parameters change about its logits before a token is chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dropless.engine.sampling_params import SamplingParams
from dropless.engine.transfer import to_device


class TokenCounts:
    """The distinct tokens of one sequence, and how often each was generated."""

    def __init__(self, prompt: Sequence[int], generated: Sequence[int]) -> None:
        distinct = np.unique(np.asarray(prompt, dtype=np.int64))
        self._size = len(distinct)
        self._ids = np.zeros(self._size + 64, dtype=np.int64)
        self._ids[: self._size] = distinct
        self._times = np.zeros(len(self._ids), dtype=np.float32)
        self._place = {token_id: i for i, token_id in enumerate(distinct.tolist())}
        for token_id in generated:
            self.add(token_id)

    @property
    def ids(self) -> NDArray[np.int64]:
        """Every token of prompt and output, once."""
        return self._ids[: self._size]

    @property
    def times_generated(self) -> NDArray[np.float32]:
        """Aligned with `ids`; 0 for a token of the prompt alone."""
        return self._times[: self._size]

    def add(self, token_id: int) -> None:
        """One more generated token."""
        place = self._place.setdefault(token_id, self._size)
        if place == self._size:
            if self._size == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._times = np.concatenate([self._times, np.zeros_like(self._times)])
            self._ids[place] = token_id
            self._size += 1
        self._times[place] += 1.0


def apply_penalties(
    logits: Tensor,
    rows: Sequence[int],
    params: Sequence[SamplingParams],
    counts: Sequence[TokenCounts],
) -> None:
    """Change `logits[rows]` [n, vocab] in place.

    Repetition (Keskar et al., "CTRL", 2019) divides a positive logit of a token in prompt or
    output and multiplies a negative one. Then, as OpenAI defines them, frequency is subtracted
    once for each time the token was generated and presence once if it ever was.
    """
    sizes = [len(count.ids) for count in counts]

    def spread(name: str) -> NDArray[np.float32]:
        return np.repeat(np.array([getattr(p, name) for p in params], dtype=np.float32), sizes)

    at_rows, at_ids, generated, repetition, frequency, presence = to_device(
        logits.device,
        np.repeat(np.asarray(rows, dtype=np.int64), sizes),
        np.concatenate([count.ids for count in counts]),
        np.concatenate([count.times_generated for count in counts]),
        spread("repetition_penalty"),
        spread("frequency_penalty"),
        spread("presence_penalty"),
    )
    values = logits[at_rows, at_ids]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= frequency * generated
    values -= presence * (generated > 0)
    logits[at_rows, at_ids] = values


def add_biases(
    logits: Tensor,
    rows: Sequence[int],
    ids: Sequence[Sequence[int]],
    values: Sequence[Sequence[float]],
) -> None:
    """Add `values[i]` (-inf forbids) to the tokens `ids[i]` of `logits[rows[i]]`, in place."""
    at_rows, at_ids, added = to_device(
        logits.device,
        np.repeat(np.asarray(rows, dtype=np.int64), [len(some) for some in ids]),
        np.concatenate([np.asarray(some, dtype=np.int64) for some in ids]),
        np.concatenate([np.asarray(some, dtype=np.float32) for some in values]),
    )
    logits.index_put_((at_rows, at_ids), added, accumulate=True)


def keep_allowed(logits: Tensor, rows: Sequence[int], masks: NDArray[np.uint32]) -> None:
    """Forbid in `logits[rows[i]]`, in place, every token whose bit in `masks[i]` is 0.

    `masks` is [n, ceil(vocab / 32)]: bit j % 32 of word j // 32 for token j.
    """
    words, at = to_device(logits.device, masks.view(np.int32), np.asarray(rows, dtype=np.int64))
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    allowed = ((words.unsqueeze(-1) >> bits) & 1).bool().flatten(1)[:, : logits.shape[1]]
    logits[at] = logits[at].masked_fill_(~allowed, -torch.inf)
