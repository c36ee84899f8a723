"""One step's input as a model sees it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dropless.ops.attention import PagedBatch


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """All tokens of a step in a row, sequence after sequence, and where their keys and values go.

    `kv_caches` holds for each layer the keys and the values, both
    [num_blocks, block_size, num_kv_heads, head_dim].
    """

    token_ids: Tensor  # [num_tokens] int64
    positions: Tensor  # [num_tokens] int64
    paged: PagedBatch
    kv_caches: list[tuple[Tensor, Tensor]]
