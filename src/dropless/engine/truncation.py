"""Where top-k, top-p and min-p cut a distribution: always at one value of the logits.

A cut by value keeps tokens that tie with the last one kept, so it does not depend on how a sort
orders ties, and drawing needs no sorted order.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_PREFILTER = 256  # most nuclei are smaller, and a full sort of a vocabulary is slow on a CPU


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
        cut = torch.from_numpy(np.log(min_p).astype(np.float32)).to(scores.device)
    if ranked.size:
        rows = torch.from_numpy(ranked).to(scores.device)
        by_rank = _cut_by_rank(scores[rows], top_k[ranked], top_p[ranked])
        cut[rows] = torch.maximum(cut[rows], by_rank)
    return cut


def _cut_by_rank(scores: Tensor, top_k: NDArray[np.int64], top_p: NDArray[np.float64]) -> Tensor:
    k = torch.from_numpy(top_k).to(scores.device)
    p = torch.from_numpy(top_p).to(scores.device)
    total = scores.exp().sum(dim=-1, dtype=torch.float64)
    width = min(_PREFILTER, scores.shape[1])
    cut, certain = _cut_sorted(scores.topk(width, dim=-1).values, total, k, p)
    if width < scores.shape[1] and not bool(certain.all()):
        rest = torch.nonzero(~certain).squeeze(1)
        cut[rest] = _cut_sorted(_falling(scores[rest]), total[rest], k[rest], p[rest])[0]
    return cut


def _falling(scores: Tensor) -> Tensor:
    """Each row sorted, greatest first."""
    if scores.device.type == "cpu":  # numpy sorts ten times as fast as torch here
        return torch.from_numpy(-np.sort(-scores.numpy(), axis=-1))
    return scores.sort(dim=-1, descending=True).values


def _cut_sorted(best: Tensor, total: Tensor, k: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """The cut as far as the best scores tell, and whether the others could not move it.

    Args:
        best: [n, width], each row's best scores, falling.
        total: [n] float64, the sum of exp(score) over each whole row.
        k, p: [n].
    """
    width = best.shape[1]
    last = best[:, -1]
    kth = best.gather(1, (k.clamp(1, width) - 1).unsqueeze(1)).squeeze(1)
    kth = kth.masked_fill(k == 0, -torch.inf)
    weights = best.double().exp().masked_fill_(best < kth.unsqueeze(1), 0.0)
    cumulative = weights.cumsum(dim=-1)
    total = torch.where(k > 0, cumulative[:, -1], total)
    before = cumulative - weights
    in_nucleus = (before < (p * total).unsqueeze(1)).sum(dim=-1)
    nucleus_end = best.gather(1, (in_nucleus.clamp(1, width) - 1).unsqueeze(1)).squeeze(1)
    cut = torch.maximum(kth, nucleus_end.masked_fill(p >= 1.0, -torch.inf))
    certain = (((k == 0) | (kth > last)) & (cut > last)) | (last == -torch.inf)
    return cut, certain
