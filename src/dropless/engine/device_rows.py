"""What the device keeps of all running requests from step to step."""

from __future__ import annotations

import torch
from torch import Tensor


class DeviceRows:
    """One row for each running request, as in `RowTable`, and a spare one for what pads a batch."""

    def __init__(self, max_rows: int, max_blocks: int, device: torch.device) -> None:
        """Room for `max_rows` sequences of up to `max_blocks` cache blocks each."""
        self.spare = max_rows
        self.max_blocks = max_blocks
        self.next_tokens = torch.zeros(max_rows + 1, dtype=torch.int64, device=device)
        self.block_tables = torch.zeros(
            (max_rows + 1, max_blocks), dtype=torch.int32, device=device
        )

    def put_tokens(self, rows: Tensor, token_ids: Tensor) -> None:
        """The token that each of these rows computes next, when it computes a single one.

        Args:
            rows: [n] int64, distinct but for the spare one.
            token_ids: [n] int64.
        """
        self.next_tokens.index_copy_(0, rows, token_ids)

    def put_blocks(self, places: Tensor, blocks: Tensor) -> None:
        """Write blocks [n] int32 at `places` [n] int64 of the flat tables."""
        self.block_tables.view(-1).index_copy_(0, places, blocks)
