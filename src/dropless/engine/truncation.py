"""Where top-k, top-p and min-p cut a distribution: always at one value of the logits.

A cut by value keeps tokens that tie with the last one kept, so it does not depend on how a sort
orders ties, and drawing needs no sorted order.

On a GPU nothing waits for it: whether the best few scores are enough is decided beforehand there.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dropless.engine.masses import masses
from dropless.engine.transfer import to_device

_PREFILTER = 256  # most nuclei are smaller, and a full sort of a vocabulary is slow


def lowest_kept(
    scores: Tensor, top_k: NDArray[np.int64], top_p: NDArray[np.float64], min_p: NDArray[np.float64]
) -> Tensor | None:
    """The score below which each row's tokens are dropped; None if no row drops any.

    Top-k first, then top-p of what is left, then min-p.

    Args:
        scores: [n, vocab] float32, logits over temperature, each row's greatest at 0.
        top_k: [n], 0 for no cut. top_p: [n] in (0, 1]. min_p: [n] in [0, 1].

    Returns:
        [n] float32, -inf for a row that drops none.
    """
    ranked = np.flatnonzero((top_k > 0) | (top_p < 1.0))
    if not ranked.size and not min_p.any():
        return None
    with np.errstate(divide="ignore"):
        lowest = np.log(min_p).astype(np.float32)
    cut, rows, k, p = to_device(scores.device, lowest, ranked, top_k[ranked], top_p[ranked])
    if ranked.size:
        by_rank = _cut_by_rank(scores[rows], k, p, enough=_prefilter_is_enough(top_k[ranked]))
        cut[rows] = torch.maximum(cut[rows], by_rank)
    return cut


def _prefilter_is_enough(top_k: NDArray[np.int64]) -> bool:
    return bool(((top_k > 0) & (top_k <= _PREFILTER)).all())


def _cut_by_rank(scores: Tensor, k: Tensor, p: Tensor, *, enough: bool) -> Tensor:
    """`enough` if the prefilter holds the best k of every row. Otherwise a CPU looks whether it
    holds the nuclei; a GPU, which would have to be waited for, sorts all."""
    may_wait = scores.device.type == "cpu"
    width = min(_PREFILTER, scores.shape[1])
    if not enough and not may_wait:
        return _cut_sorted(scores.sort(dim=-1, descending=True).values, scores, k, p)[0]
    cut, certain = _cut_sorted(scores.topk(width, dim=-1).values, scores, k, p)
    if not enough and width < scores.shape[1] and not bool(certain.all()):
        rest = torch.nonzero(~certain).squeeze(1)
        # numpy sorts ten times as fast as torch on a CPU
        falling = torch.from_numpy(-np.sort(-scores[rest].numpy(), axis=-1))
        cut[rest] = _cut_sorted(falling, scores[rest], k[rest], p[rest])[0]
    return cut


def _cut_sorted(best: Tensor, scores: Tensor, k: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """The cut as far as the best scores tell, and whether the others could not move it.

    Args:
        best: [n, width], each row's best scores, falling.
        scores: [n, vocab], the whole rows.
        k, p: [n].
    """
    width = best.shape[1]
    last = best[:, -1]
    kth = best.gather(1, (k.clamp(1, width) - 1).unsqueeze(1)).squeeze(1)
    kth = kth.masked_fill(k == 0, -torch.inf)
    kept = scores.masked_fill(scores < kth.unsqueeze(1), -torch.inf)  # with all ties of the k-th
    total = masses(kept).sum(dim=-1)
    weights = masses(best.masked_fill(best < kth.unsqueeze(1), -torch.inf))
    before = weights.cumsum(dim=-1) - weights
    in_nucleus = (before < (p * total).unsqueeze(1)).sum(dim=-1)
    nucleus_end = best.gather(1, (in_nucleus.clamp(1, width) - 1).unsqueeze(1)).squeeze(1)
    cut = torch.maximum(kth, nucleus_end.masked_fill(p >= 1.0, -torch.inf))
    # What is left behind the k-th are its ties.
    certain = ((k <= width) & ((k > 0) | (cut > last))) | (last == -torch.inf)
    return cut, certain
