"""Before the first request: every kernel is compiled, and measured where its best tile is not
known, so that no request waits for that."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from dropless.layers.batch import ForwardBatch
from dropless.models.decoder import CausalLM
from dropless.ops.attention import PagedBatch
from dropless.parallel.group import Group

# Numbers of tokens of a step; between two of them no other kernel is chosen.
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@torch.inference_mode()
def warm_up(
    model: CausalLM,
    kv_caches: list[tuple[Tensor, Tensor]],
    group: Group,
    *,
    device: torch.device,
    spare_block: int,
    cache_folder: Path,
    progress: Callable[[str, float], None],
) -> None:
    """Compute steps of all sizes into `spare_block`, which belongs to no sequence, each rank by
    itself. Tiles of shapes that no table has are measured first and kept in `cache_folder`, which
    takes up to a minute."""
    from dropless.ops.triton.tuning import read_cache, tune_for

    def compute(num_tokens: int) -> None:
        torch.cuda.set_device(device)
        with torch.inference_mode():
            model(_one_sequence(num_tokens, kv_caches, spare_block, device))

    read_cache(cache_folder)
    progress("compiling kernels", 0.0)
    with group.alone():
        tune_for(
            lambda: compute(8),
            lambda done: progress("measuring kernels", done),
            folder=cache_folder if group.rank == 0 else None,
        )
        sizes = [size for size in _SIZES if size <= model.config.max_position_embeddings]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # compilers run side by side
            for done, _ in enumerate(pool.map(compute, sizes)):
                progress("compiling kernels", (done + 1) / len(sizes))
    torch.cuda.synchronize(device)


def _one_sequence(
    num_tokens: int,
    kv_caches: list[tuple[Tensor, Tensor]],
    spare_block: int,
    device: torch.device,
) -> ForwardBatch:
    """So many tokens, all of which are written to one place of the cache."""
    block_size = kv_caches[0][0].shape[1]

    def filled(value: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.full(shape, value, dtype=dtype, device=device)

    paged = PagedBatch(
        slot_mapping=filled(spare_block * block_size, num_tokens),
        block_tables=filled(spare_block, 1, -(-num_tokens // block_size), dtype=torch.int32),
        query_start=torch.tensor([0, num_tokens], dtype=torch.int32, device=device),
        seq_lens=filled(num_tokens, 1, dtype=torch.int32),
        num_decodes=int(num_tokens == 1),
        num_chunks=int(num_tokens > 1),
        query_lens_host=[num_tokens],
        seq_lens_host=[num_tokens],
    )
    positions = torch.arange(num_tokens, device=device)
    return ForwardBatch(filled(0, num_tokens), positions, paged, kv_caches)
