"""Before the first request: every kernel is compiled, and measured where its best tile is not
known, so that no request waits for that."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dropless.engine.step_graphs import MOST_TOKENS
from dropless.layers.batch import ForwardBatch
from dropless.models.decoder import CausalLM
from dropless.ops.attention import PagedBatch
from dropless.parallel.group import Group

# Numbers of tokens of a step; between two of them no other kernel is chosen.
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_FEW_KEYS = (16, 128, 256)  # sequences as short as these are cut into fewer parts


@torch.inference_mode()
def warm_up(
    model: CausalLM,
    kv_caches: list[tuple[Tensor, Tensor]],
    group: Group,
    *,
    device: torch.device,
    spare_block: int,
    max_rows: int,
    max_model_len: int,
    step_token_budget: int,
    cache_folder: Path,
    progress: Callable[[str, float], None],
) -> None:
    """Compute steps of all kinds into `spare_block`, which belongs to no sequence, each rank by
    itself. Tiles of shapes that no table has are measured first and kept in `cache_folder`, which
    takes up to a minute."""
    from dropless.ops.triton.tuning import read_cache, tune_for

    def compute(kind: _Kind) -> None:
        torch.cuda.set_device(device)
        with torch.inference_mode():
            model(_step(kind, kv_caches, spare_block, device))

    read_cache(cache_folder)
    progress("compiling kernels", 0.0)
    with group.alone():
        tune_for(
            lambda: compute(_Kind(num_chunk_tokens=8)),
            lambda done: progress("measuring kernels", done),
            folder=cache_folder if group.rank == 0 else None,
        )
        sizes = [size for size in _SIZES if size <= max_model_len]
        kinds = [_Kind(num_decodes=1), *(_Kind(num_chunk_tokens=size) for size in sizes[1:])]
        has_large_steps = step_token_budget > MOST_TOKENS
        if has_large_steps:
            kinds += _mixed_kinds(max_rows, max_model_len)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # compilers run side by side
            for done, _ in enumerate(pool.map(compute, kinds)):
                progress("compiling kernels", (done + 1) / len(kinds))
        if has_large_steps:  # alone, for the memory that it takes
            compute(_Kind(num_chunk_tokens=min(step_token_budget, max_model_len)))
    torch.cuda.synchronize(device)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A step of so many sequences with one token, and one with several."""

    num_decodes: int = 0
    num_chunk_tokens: int = 0  # 0: there is no such sequence
    num_keys: int = 0  # of the longest sequence; 0: no more than are computed


def _mixed_kinds(max_rows: int, max_model_len: int) -> Iterator[_Kind]:
    """What steps too large for a graph choose kernels by, beside their number of tokens."""
    num_sequences = 2
    while num_sequences < 2 * max_rows:
        num_decodes = min(num_sequences, max_rows) - 1
        yield _Kind(num_decodes, num_chunk_tokens=2, num_keys=max_model_len)
        num_sequences *= 2
    for num_keys in _FEW_KEYS:
        if num_keys <= max_model_len:
            yield _Kind(num_decodes=1, num_chunk_tokens=2, num_keys=num_keys)


def _step(
    kind: _Kind, kv_caches: list[tuple[Tensor, Tensor]], spare_block: int, device: torch.device
) -> ForwardBatch:
    """All of its tokens are written to one place of the cache."""
    block_size = kv_caches[0][0].shape[1]
    lens = [1] * kind.num_decodes + [kind.num_chunk_tokens] * (kind.num_chunk_tokens > 0)
    num_tokens, num_keys = sum(lens), max(kind.num_keys, *lens)

    def numbers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    blocks = (len(lens), -(-num_keys // block_size))
    paged = PagedBatch(
        slot_mapping=torch.full((num_tokens,), spare_block * block_size, device=device),
        block_tables=torch.full(blocks, spare_block, dtype=torch.int32, device=device),
        query_start=numbers([0, *itertools.accumulate(lens)]),
        seq_lens=numbers(lens),
        num_decodes=kind.num_decodes,
        num_chunks=len(lens) - kind.num_decodes,
        query_lens_host=lens,
        seq_lens_host=lens,
    )
    positions = torch.cat([torch.arange(length, device=device) for length in lens])
    token_ids = torch.zeros(num_tokens, dtype=torch.int64, device=device)
    return ForwardBatch(token_ids, positions, paged, kv_caches)
