"""What all families are: an embedding, pre-norm blocks on a residual stream, a norm, a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from dropless.layers.attention import Attention
from dropless.layers.batch import ForwardBatch
from dropless.layers.embedding import Embedding, OutputHead
from dropless.layers.norm import LayerNorm, RMSNorm
from dropless.models.config import ModelConfig

Norm = RMSNorm | LayerNorm


@dataclass(frozen=True, slots=True)
class Block:
    """One transformer block."""

    norm_1: Norm
    attention: Attention
    norm_2: Norm
    ffn: Callable[[Tensor], Tensor]

    def __call__(
        self, x: Tensor, residual: Tensor | None, batch: ForwardBatch, rotary: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The block's output, which is still to be added to the residual, and the residual."""
        x, residual = self.norm_1(x, residual)
        x = self.attention(x, batch, rotary)
        x, residual = self.norm_2(x, residual)
        return self.ffn(x), residual


@dataclass(frozen=True, slots=True)
class CausalLM:
    """A decoder-only language model, on one rank."""

    config: ModelConfig
    rotary_table: Tensor  # [max_positions, 2, head_dim] float32
    embedding: Embedding
    blocks: Sequence[Block]
    norm: Norm
    head: OutputHead

    def __call__(self, batch: ForwardBatch) -> Tensor:
        """Normalised last hidden states [num_tokens, hidden] of all tokens of a step."""
        x, residual = self.embedding(batch.token_ids), None
        rotary = self.rotary_table[batch.positions]
        for block in self.blocks:
            x, residual = block(x, residual, batch, rotary)
        return self.norm(x, residual)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] to [n, vocab] float32."""
        return self.head(hidden)
