"""Sequences of random content laid out in a paged cache whose other slots are NaN."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dropless.ops.attention import PagedBatch


@dataclass(frozen=True)
class Layout:
    """Sequences as (queries in this step, length with them), those with one query first."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    sequences: tuple[tuple[int, int], ...]

    @property
    def num_tokens(self) -> int:
        return sum(query_len for query_len, _ in self.sequences)


LAYOUTS = [
    Layout(9, 3, 64, 16, ((1, 464),)),
    Layout(9, 3, 64, 16, ((1, 17), (1, 1), (1, 464), (1, 16), (1, 15))),
    Layout(6, 6, 32, 8, ((1, 900), (1, 3), (1, 1200), (1, 700), (1, 650), (3, 9))),
    Layout(6, 1, 16, 8, ((1, 33), (1, 8), (5, 5), (7, 40), (16, 31), (1, 9))),
    Layout(12, 2, 32, 8, ((24, 24), (17, 80))),
    Layout(4, 4, 16, 16, ((1, 20), (1, 21), (64, 150))),
    Layout(6, 1, 32, 16, ((1, 9000), (1, 257), (1, 256))),
]


def tables(layout: Layout, generator: torch.Generator) -> Tensor:
    """[num_seqs, blocks of the longest] int32: shuffled blocks; zeros past a sequence's end."""
    counts = [-(-length // layout.block_size) for _, length in layout.sequences]
    free = torch.randperm(sum(counts) + 3, generator=generator).int()
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    for i, count in enumerate(counts):
        table[i, :count] = free[sum(counts[:i]) :][:count]
    return table


def batch_of(layout: Layout, block_tables: Tensor, device: torch.device) -> PagedBatch:
    """As the runner builds it."""
    query_lens = [query_len for query_len, _ in layout.sequences]
    seq_lens = [length for _, length in layout.sequences]
    num_decodes = next((i for i, n in enumerate(query_lens) if n != 1), len(query_lens))
    slots = [
        slots_of(layout, block_tables[i], torch.arange(length - query_len, length))
        for i, (query_len, length) in enumerate(layout.sequences)
    ]
    return PagedBatch(
        slot_mapping=torch.cat(slots).to(device),
        block_tables=block_tables.to(device),
        query_start=torch.tensor([0, *query_lens]).cumsum(0).int().to(device),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
        num_decodes=num_decodes,
        num_chunks=len(query_lens) - num_decodes,
        query_lens_host=query_lens,
        seq_lens_host=seq_lens,
    )


def slots_of(layout: Layout, blocks: Tensor, places: Tensor) -> Tensor:
    """The cache slots of the tokens at `places` of one sequence."""
    return blocks[places // layout.block_size].long() * layout.block_size + (
        places % layout.block_size
    )


def empty_cache(layout: Layout, block_tables: Tensor) -> Tensor:
    """[num_blocks, block_size, num_kv_heads, head_dim], all NaN."""
    num_blocks = int(block_tables.max()) + 1
    shape = (num_blocks, layout.block_size, layout.num_kv_heads, layout.head_dim)
    return torch.full(shape, float("nan"))


def filled_cache(layout: Layout, block_tables: Tensor, contents: list[Tensor]) -> Tensor:
    """A cache with `contents[i]` [length, num_kv_heads, head_dim] of each sequence."""
    cache = empty_cache(layout, block_tables)
    for i, content in enumerate(contents):
        slots = slots_of(layout, block_tables[i], torch.arange(len(content)))
        cache.view(-1, *content.shape[1:])[slots] = content
    return cache
