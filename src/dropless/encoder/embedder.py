"""The embedding model, and what reads its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dropless.encoder.minilm import MiniLM
from dropless.encoder.safety import SafetyHead
from dropless.encoder.word_pieces import WordPieces


class Embedder:
    def __init__(self, folder: Path, threads: int) -> None:
        """Raises CheckpointError: the folder has no sound model."""
        torch.set_num_threads(threads)
        self.pieces = WordPieces(folder)
        self.vectors = MiniLM(folder)
        self.safety = SafetyHead()
        self._topics: dict[tuple[str, ...], Tensor] = {}  # by topics: [topics, hidden]

    def topic(self, windows: Tensor, topics: Sequence[str]) -> float:
        """The similarity of a text in windows [n, depths, hidden] to the nearest topic."""
        key = tuple(topics)
        known = self._topics.get(key)
        if known is None:
            known = self._topics[key] = self.vectors(self.pieces.encode(topics))[:, -1]
        text = F.normalize(windows[:, -1].mean(0), dim=0)
        return float((known @ text).max())
