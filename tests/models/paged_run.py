"""Runs a model by hand over a paged cache that is as unkind as a real one can be."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dropless.layers.batch import ForwardBatch
from dropless.models.decoder import CausalLM
from dropless.ops.attention import PagedBatch


@dataclass(slots=True)
class PagedSequence:
    """One sequence and where its cached keys and values are."""

    token_ids: list[int]
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0

    @property
    def left(self) -> int:
        return len(self.token_ids) - self.num_computed


class PagedRun:
    """A model and its cache. Blocks are handed out in random order, so that neighbours in a
    sequence are not neighbours in the cache. All that was never written is NaN: whoever reads it
    spoils the logits. Block tables are padded with a block that is never written."""

    def __init__(
        self,
        model: CausalLM,
        *,
        num_blocks: int = 48,
        block_size: int = 8,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        self._model = model
        self._block_size = block_size
        self._poison_block, *self._free = random.Random(seed).sample(range(num_blocks), num_blocks)
        config = model.config
        shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)
        self.kv_caches = [
            (torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype))
            for _ in range(config.num_layers)
        ]

    def step(self, work: Sequence[tuple[PagedSequence, int]]) -> list[Tensor]:
        """Compute the next so many tokens of each sequence in one batch; returns the logits
        [tokens, vocab] of each. Sequences with one token must stand first, as in the engine."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for sequence, count in work:
            span = range(sequence.num_computed, sequence.num_computed + count)
            token_ids += sequence.token_ids[span.start : span.stop]
            positions += span
            slots += [self._slot(sequence, position) for position in span]
            sequence.num_computed = span.stop
        lens = [count for _, count in work]
        batch = ForwardBatch(
            token_ids=torch.tensor(token_ids),
            positions=torch.tensor(positions),
            paged=self._paged(work, slots),
            kv_caches=self.kv_caches,
        )
        with torch.inference_mode():
            logits = self._model.logits(self._model(batch))
        return list(logits.split(lens))

    def written_slots(self, sequences: Sequence[PagedSequence]) -> Tensor:
        """[num_blocks, block_size] bool: the slots that computing these sequences fills."""
        written = torch.zeros(self.kv_caches[0][0].shape[:2], dtype=torch.bool)
        for sequence in sequences:
            for position in range(sequence.num_computed):
                written.view(-1)[self._slot(sequence, position)] = True
        return written

    def _paged(self, work: Sequence[tuple[PagedSequence, int]], slots: list[int]) -> PagedBatch:
        lens = [count for _, count in work]
        seq_lens = [sequence.num_computed for sequence, _ in work]
        num_decodes = next((i for i, n in enumerate(lens) if n != 1), len(lens))
        assert 1 not in lens[num_decodes:], "sequences with one token stand first"
        width = max(len(sequence.blocks) for sequence, _ in work)
        tables = [
            [*sequence.blocks, *[self._poison_block] * (width - len(sequence.blocks))]
            for sequence, _ in work
        ]
        query_start = [sum(lens[:i]) for i in range(len(lens) + 1)]
        return PagedBatch(
            slot_mapping=torch.tensor(slots),
            block_tables=torch.tensor(tables, dtype=torch.int32),
            query_start=torch.tensor(query_start, dtype=torch.int32),
            seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
            num_decodes=num_decodes,
            num_chunks=len(lens) - num_decodes,
            query_lens_host=lens,
            seq_lens_host=seq_lens,
        )

    def _slot(self, sequence: PagedSequence, position: int) -> int:
        index, offset = divmod(position, self._block_size)
        if index == len(sequence.blocks):
            sequence.blocks.append(self._free.pop())
        return sequence.blocks[index] * self._block_size + offset


def full_pass(model: CausalLM, token_ids: list[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits [tokens, vocab] of one sequence, computed in one step."""
    return PagedRun(model, dtype=dtype).step([(PagedSequence(token_ids), len(token_ids))])[0]


def chunked(model: CausalLM, token_ids: list[int], seed: int = 0) -> Tensor:
    """The same in random chunks, some of a single token, over the cache."""
    rng = random.Random(seed)
    run, sequence = PagedRun(model, seed=seed), PagedSequence(token_ids)
    logits = []
    while sequence.left:
        logits += run.step([(sequence, min(sequence.left, rng.choice((1, 2, 3, 7, 11))))])
    return torch.cat(logits)


def batched(model: CausalLM, prompts: Sequence[list[int]], seed: int = 0) -> list[Tensor]:
    """The same for several sequences that start, pause and end at different times: each step runs
    a random few of them, decodes and chunks mixed. Checks that only their own slots are written."""
    rng = random.Random(seed)
    run = PagedRun(model, seed=seed)
    sequences = [PagedSequence(prompt) for prompt in prompts]
    logits: list[list[Tensor]] = [[] for _ in sequences]
    while waiting := [i for i, sequence in enumerate(sequences) if sequence.left]:
        chosen = rng.sample(waiting, rng.randint(1, len(waiting)))
        counts = {i: min(sequences[i].left, rng.choice((1, 1, 1, 2, 5, 9))) for i in chosen}
        chosen.sort(key=lambda i: counts[i] != 1)
        for i, part in zip(
            chosen, run.step([(sequences[i], counts[i]) for i in chosen]), strict=True
        ):
            logits[i].append(part)
    written = run.written_slots(sequences)
    for cache in (cache for pair in run.kv_caches for cache in pair):
        assert torch.equal(cache.isfinite().all(dim=(2, 3)), written)
        assert torch.equal(cache.isfinite().any(dim=(2, 3)), written)
    return [torch.cat(parts) for parts in logits]
