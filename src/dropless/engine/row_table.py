"""Tokens and cache blocks of all running requests, as arrays that a step is gathered from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dropless.engine.step import StepInput

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepArrays:
    """One step, flat: all its tokens in a row, sequence after sequence. Sequences with one token
    stand first; the device has their tokens, except for `given` ones."""

    rows: Int64s  # [num_seqs]
    num_decodes: int  # leading sequences with exactly one token
    token_ids: Int64s  # [num_tokens - num_decodes], of the other sequences
    given_rows: Int64s  # [num_given], rows whose next token the host knows better
    given_ids: Int64s  # [num_given]
    positions: Int64s  # [num_tokens]
    slot_mapping: Int64s  # [num_tokens], block_id * block_size + offset
    query_start: Int32s  # [num_seqs + 1], cumulative
    query_lens: Int32s  # [num_seqs]
    seq_lens: Int32s  # [num_seqs], this step's tokens included
    max_blocks: int  # of the longest sequence
    block_places: Int64s  # [num_new_blocks], row * blocks in a row + place in the sequence
    block_ids: Int32s  # [num_new_blocks]
    sampled: Int64s  # [num_sampled], which of the sequences sample


class RowTable:
    """One row for each running request, at the index that the scheduler gave it. It knows the
    tokens that a request starts with; those that are sampled later stay on the device."""

    def __init__(self, max_rows: int, max_len: int, block_size: int) -> None:
        """Room for `max_rows` sequences of up to `max_len` tokens each."""
        self.block_size = block_size
        self.max_blocks = -(-max_len // block_size)
        self._token_ids = np.zeros((max_rows, max_len), dtype=np.int32)
        self._num_tokens = np.zeros(max_rows, dtype=np.int64)
        self._block_tables = np.zeros((max_rows, self.max_blocks), dtype=np.int32)
        self._num_blocks = [0] * max_rows

    def start(self, row: int, token_ids: Sequence[int]) -> None:
        """Begin a sequence in `row`; what was there is forgotten."""
        self._token_ids[row, : len(token_ids)] = token_ids
        self._num_tokens[row] = len(token_ids)
        self._num_blocks[row] = 0

    def gather(self, step: StepInput, replaced: Mapping[int, int]) -> StepArrays:
        """The arrays of `step`, whose new blocks are taken into the tables first. `replaced` has
        for some rows a token in the place of the last sampled one."""
        block_places, block_ids = self._add_blocks(step)
        rows = np.array(step.rows, dtype=np.int64)
        computed = np.array(step.num_computed, dtype=np.int32)
        query_lens = np.array(step.num_tokens, dtype=np.int32)
        query_start = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum(query_lens, out=query_start[1:])
        seq_lens = computed + query_lens
        longer = query_lens != 1
        num_decodes = int(longer.argmax()) if longer.any() else len(rows)
        token_rows = np.repeat(rows, query_lens)
        shift = np.repeat(computed - query_start[:-1], query_lens)
        positions = np.arange(query_start[-1], dtype=np.int64) + shift
        blocks = self._block_tables[token_rows, positions // self.block_size].astype(np.int64)
        tokens = self._token_ids[token_rows[num_decodes:], positions[num_decodes:]]
        given_rows, given_ids = self._given(rows[:num_decodes], computed[:num_decodes], replaced)
        return StepArrays(
            rows=rows,
            num_decodes=num_decodes,
            token_ids=tokens.astype(np.int64),
            given_rows=given_rows,
            given_ids=given_ids,
            positions=positions,
            slot_mapping=blocks * self.block_size + positions % self.block_size,
            query_start=query_start,
            query_lens=query_lens,
            seq_lens=seq_lens,
            max_blocks=-(-int(seq_lens.max()) // self.block_size),
            block_places=block_places,
            block_ids=block_ids,
            sampled=np.flatnonzero(step.sample),
        )

    def _given(
        self, rows: Int64s, positions: Int32s, replaced: Mapping[int, int]
    ) -> tuple[Int64s, Int64s]:
        """Rows whose next token the device does not have, and these tokens."""
        known = positions < self._num_tokens[rows]
        known_ids = self._token_ids[rows[known], positions[known]]
        given_rows = np.concatenate([rows[known], np.array(list(replaced), dtype=np.int64)])
        ids = np.concatenate([known_ids, np.array(list(replaced.values()), dtype=np.int64)])
        return given_rows, ids.astype(np.int64)

    def _add_blocks(self, step: StepInput) -> tuple[Int64s, Int32s]:
        """Their places in the flat tables, and the blocks."""
        places: list[int] = []
        added: list[int] = []
        for row, blocks in zip(step.rows, step.new_blocks, strict=True):
            if blocks:
                start = row * self.max_blocks + self._num_blocks[row]
                places += range(start, start + len(blocks))
                added += blocks
                self._num_blocks[row] += len(blocks)
        at, block_ids = np.array(places, dtype=np.int64), np.array(added, dtype=np.int32)
        self._block_tables.reshape(-1)[at] = block_ids
        return at, block_ids
