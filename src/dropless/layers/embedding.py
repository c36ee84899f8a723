"""Token embedding, whole on every rank, and the output head, split by vocabulary."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dropless.layers.linear import Linear
from dropless.layers.weights import Weights


class Embedding:
    def __init__(self, weights: Weights, name: str, vocab_size: int, hidden_size: int) -> None:
        self.table = weights.matrix(name, (vocab_size, hidden_size))  # [vocab, hidden]
        self._dtype = weights.dtype

    def __call__(self, token_ids: Tensor) -> Tensor:
        """[num_tokens] int64 to [num_tokens, hidden]."""
        return F.embedding(token_ids, self.table).to(self._dtype)


class OutputHead:
    """Hidden states to logits of the whole vocabulary."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        vocab_size: int,
        hidden_size: int,
        *,
        tied_to: Embedding | None = None,
    ) -> None:
        """`tied_to` shares the embedding's matrix instead of reading `name`. A vocabulary that
        does not divide evenly is computed whole on every rank."""
        size = weights.group.size
        self._group = weights.group if vocab_size % size == 0 else None
        if tied_to is not None:
            start, length = 0, vocab_size
            if self._group is not None:
                start, length = self._group.slice_of(vocab_size, name)
            matrix = tied_to.table[start : start + length]
        elif self._group is not None:
            matrix = weights.matrix_rows(name, (vocab_size, hidden_size))
        else:
            matrix = weights.matrix(name, (vocab_size, hidden_size))
        self._linear = Linear(
            weights.pack(matrix, keeps_matrix=tied_to is not None),
            batch_invariant=weights.batch_invariant,
        )

    def __call__(self, hidden: Tensor) -> Tensor:
        """[n, hidden] to [n, vocab] float32, the same on every rank."""
        logits = self._linear(hidden)
        if self._group is not None:
            logits = self._group.all_gather(logits)
        return logits.float()
