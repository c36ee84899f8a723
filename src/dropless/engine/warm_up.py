"""Before the first request: every kernel is compiled, and measured where its best tile is not
known, so that no request waits for that."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dropless.engine.step_graphs import MOST_TOKENS, batch_buckets, token_buckets
from dropless.layers.batch import ForwardBatch
from dropless.models.decoder import CausalLM
from dropless.ops.attention import PagedBatch
from dropless.parallel.group import Group

_BLOCKS = 2  # of the model: all others are as the second one
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
    """Go through steps of all kinds, each rank by itself, in `spare_block`, which belongs to no
    sequence. Kernels are compiled side by side and not launched. Tiles of shapes that no table has
    are measured first and kept in `cache_folder`, which takes up to a minute."""
    from dropless.ops.triton.dry_run import compiling, dry_run
    from dropless.ops.triton.tuning import read_cache, tune_for

    short = replace(model, blocks=model.blocks[:_BLOCKS])

    def compute(kind: _Kind) -> None:
        hidden = short(_step(kind, kv_caches, spare_block, device))
        if not kind.has_chunks:
            short.logits(hidden)

    def look() -> None:
        with dry_run():
            compute(_Kind(8))

    torch.cuda.set_device(device)
    read_cache(cache_folder)
    progress("compiling kernels", 0.0)
    with group.alone():
        tune_for(
            look,
            lambda done: progress("measuring kernels", done),
            folder=cache_folder if group.rank == 0 else None,
        )
        with ThreadPoolExecutor(os.cpu_count()) as pool, compiling(pool) as compilations:
            for kind in _kinds(max_rows, max_model_len, step_token_budget):
                compute(kind)
            for done, _ in enumerate(as_completed(compilations), 1):
                progress("compiling kernels", done / len(compilations))
        if step_token_budget > MOST_TOKENS:  # no graph will have computed these before a request
            compute(_Kind(min(step_token_budget, max_model_len)))
    torch.cuda.synchronize(device)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A step as kernels are chosen for it. Of several sequences each has one token, unless some
    `has_chunks`, which is taken into account but not computed."""

    num_tokens: int
    num_sequences: int = 1
    has_chunks: bool = True
    num_keys: int = 0  # that block tables have room for; 0: as many as tokens


def _kinds(max_rows: int, max_model_len: int, step_token_budget: int) -> Iterator[_Kind]:
    """What is chosen by the number of tokens, then what is by that of sequences."""
    yield _Kind(1, has_chunks=False, num_keys=max_model_len)
    longest = 1 << (max_model_len.bit_length() - 1)
    # Between two powers of two no other kernel is chosen.
    powers = (1 << power for power in range(1, step_token_budget.bit_length()))
    for size in sorted({*powers, step_token_budget}):
        count = -(-size // longest)
        yield _Kind(size - size % count, count)
    for count in batch_buckets(max_rows)[1:]:
        yield _Kind(count, count, has_chunks=False, num_keys=max_model_len)
    for count in sorted({min(size, max_rows) + 1 for size in token_buckets(step_token_budget)}):
        yield _Kind(count, count, num_keys=max_model_len)
    if step_token_budget > MOST_TOKENS:  # steps of any number of sequences go without a graph
        count = 2
        while count < 2 * max_rows:
            yield _Kind(min(count, max_rows), min(count, max_rows), num_keys=max_model_len)
            count *= 2
        for num_keys in _FEW_KEYS:
            if num_keys <= max_model_len:
                yield _Kind(2, 2, num_keys=num_keys)


def _step(
    kind: _Kind, kv_caches: list[tuple[Tensor, Tensor]], spare_block: int, device: torch.device
) -> ForwardBatch:
    """All of its tokens are written to one place of the cache. As in a graph, only the device knows
    the lengths."""
    block_size = kv_caches[0][0].shape[1]
    count, num_tokens = kind.num_sequences, kind.num_tokens
    length = num_tokens // count
    assert length * count == num_tokens  # all sequences are as long
    blocks = (count, -(-max(kind.num_keys, length) // block_size))
    paged = PagedBatch(
        slot_mapping=torch.full((num_tokens,), spare_block * block_size, device=device),
        block_tables=torch.full(blocks, spare_block, dtype=torch.int32, device=device),
        query_start=torch.arange(0, num_tokens + 1, length, dtype=torch.int32, device=device),
        seq_lens=torch.full((count,), length, dtype=torch.int32, device=device),
        num_decodes=0 if length > 1 else count,
        num_chunks=count if kind.has_chunks else 0,
        query_lens_host=[],
        seq_lens_host=[],
    )
    positions = torch.arange(length, device=device).repeat(count)
    token_ids = torch.zeros(num_tokens, dtype=torch.int64, device=device)
    return ForwardBatch(token_ids, positions, paged, kv_caches)
