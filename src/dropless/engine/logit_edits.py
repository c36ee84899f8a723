"""What a request's parameters change about its logits before a token is chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dropless.engine.sampling_params import SamplingParams


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


def has_penalties(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
    )


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

    def spread(name: str) -> Tensor:
        values = np.array([getattr(p, name) for p in params], dtype=np.float32)
        return torch.from_numpy(np.repeat(values, sizes)).to(logits.device)

    at_rows = torch.from_numpy(np.repeat(np.asarray(rows), sizes)).to(logits.device)
    at_ids = torch.from_numpy(np.concatenate([count.ids for count in counts])).to(logits.device)
    times = np.concatenate([count.times_generated for count in counts])
    generated = torch.from_numpy(times).to(logits.device)
    repetition = spread("repetition_penalty")
    values = logits[at_rows, at_ids]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= spread("frequency_penalty") * generated
    values -= spread("presence_penalty") * (generated > 0)
    logits[at_rows, at_ids] = values


def add_biases(
    logits: Tensor,
    rows: Sequence[int],
    ids: Sequence[Sequence[int]],
    values: Sequence[Sequence[float]],
) -> None:
    """Add `values[i]` (-inf forbids) to the tokens `ids[i]` of `logits[rows[i]]`, in place."""
    at_rows = np.repeat(np.asarray(rows), [len(some) for some in ids])
    at_ids = np.concatenate([np.asarray(some, dtype=np.int64) for some in ids])
    added = np.concatenate([np.asarray(some, dtype=np.float32) for some in values])
    place = (
        torch.from_numpy(at_rows).to(logits.device),
        torch.from_numpy(at_ids).to(logits.device),
    )
    logits.index_put_(place, torch.from_numpy(added).to(logits.device), accumulate=True)


def keep_allowed(logits: Tensor, rows: Sequence[int], masks: NDArray[np.uint32]) -> None:
    """Forbid in `logits[rows[i]]`, in place, every token whose bit in `masks[i]` is 0.

    `masks` is [n, ceil(vocab / 32)]: bit j % 32 of word j // 32 for token j.
    """
    words = torch.from_numpy(masks.view(np.int32)).to(logits.device)
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    allowed = ((words.unsqueeze(-1) >> bits) & 1).bool().flatten(1)[:, : logits.shape[1]]
    at = torch.tensor(list(rows), device=logits.device)
    logits[at] = logits[at].masked_fill_(~allowed, -torch.inf)
