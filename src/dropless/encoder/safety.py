"""How unsafe a text is, in each category that there is data to learn from.

A linear head on the embedding model's vectors, trained by `benchmarks/train_safety.py`; how well
it does is measured by `benchmarks/guardrails.py`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch
from torch import Tensor

_HEAD = Path(__file__).with_name("safety_head.json")


class CategoryHead(msgspec.Struct, frozen=True):
    """`weights` are one for each number of the vectors, depth after depth. A text is unsafe from
    a score of `threshold` on."""

    bias: float
    threshold: float
    weights: list[float]


def category_heads() -> dict[str, CategoryHead]:
    """The trained head of each category."""
    return msgspec.json.decode(_HEAD.read_bytes(), type=dict[str, CategoryHead])


class SafetyHead:
    def __init__(self) -> None:
        heads = category_heads()
        self._names = tuple(heads)
        self._thresholds = {name: head.threshold for name, head in heads.items()}
        self._weights = torch.tensor([head.weights for head in heads.values()])
        self._biases = torch.tensor([head.bias for head in heads.values()])

    def scores(self, windows: Tensor) -> dict[str, float]:
        """The score of each category, 0 to 1, for a text in windows [n, depths, hidden]: that of
        the window which has the highest."""
        logits = windows.flatten(1) @ self._weights.T + self._biases
        highest = logits.sigmoid().amax(0).tolist()
        return dict(zip(self._names, highest, strict=True))

    def unsafe(self, scores: dict[str, float]) -> list[str]:
        """The categories whose score is over their threshold."""
        return [name for name, score in scores.items() if score >= self._thresholds[name]]
