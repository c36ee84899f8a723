"""What all families are: an embedding, pre-norm blocks on a residual stream, a norm, a head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dropless.layers.attention import Attention
from dropless.layers.batch import ForwardBatch
from dropless.layers.embedding import Embedding, OutputHead
from dropless.layers.norm import ResidualNorm
from dropless.models.config import ModelConfig
from dropless.ops.moe import ExpertOutputs


class FeedForward(Protocol):
    def __call__(self, x: Tensor, residual: Tensor) -> tuple[Tensor | ExpertOutputs, Tensor]: ...


@dataclass(frozen=True, slots=True)
class Block:
    """One transformer block: each half of it begins with its norm."""

    attention: Attention
    ffn: FeedForward

    def __call__(
        self,
        x: Tensor | ExpertOutputs,
        residual: Tensor | None,
        batch: ForwardBatch,
        rotary: Tensor,
    ) -> tuple[Tensor | ExpertOutputs, Tensor]:
        """The block's output, which is still to be added to the residual, and the residual."""
        mixed, stream = self.attention(x, residual, batch, rotary)
        return self.ffn(mixed, stream)


@dataclass(frozen=True, slots=True)
class CausalLM:
    """A decoder-only language model, on one rank."""

    config: ModelConfig
    rotary_table: Tensor  # [max_positions, 2, head_dim] float32
    embedding: Embedding
    blocks: Sequence[Block]
    norm: ResidualNorm
    head: OutputHead

    def __call__(self, batch: ForwardBatch) -> Tensor:
        """Normalised last hidden states [num_tokens, hidden] of all tokens of a step."""
        x: Tensor | ExpertOutputs = self.embedding(batch.token_ids)
        residual: Tensor | None = None
        rotary = self.rotary_table[batch.positions]
        for block in self.blocks:
            x, residual = block(x, residual, batch, rotary)
        return self.norm(x, residual)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] to [n, vocab] float32."""
        return self.head(hidden)
