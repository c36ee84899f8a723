"""Tokens and cache blocks of all running requests, as arrays that a step is gathered from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dropless.engine.step import StepInput


@dataclass(frozen=True, slots=True)
class StepArrays:
    """One step, flat: all its tokens in a row, sequence after sequence."""

    token_ids: NDArray[np.int64]  # [num_tokens]
    positions: NDArray[np.int64]  # [num_tokens]
    slot_mapping: NDArray[np.int64]  # [num_tokens], block_id * block_size + offset
    block_tables: NDArray[np.int32]  # [num_seqs, blocks of the longest]
    query_start: NDArray[np.int32]  # [num_seqs + 1], cumulative
    query_lens: NDArray[np.int32]  # [num_seqs]
    seq_lens: NDArray[np.int32]  # [num_seqs], this step's tokens included
    num_decodes: int  # leading sequences with exactly one token


class RowTable:
    """One row for each running request, at the index that the scheduler gave it."""

    def __init__(self, max_rows: int, max_len: int, block_size: int) -> None:
        """Room for `max_rows` sequences of up to `max_len` tokens each."""
        self.block_size = block_size
        self.token_ids = np.zeros((max_rows, max_len), dtype=np.int32)
        self.num_tokens = np.zeros(max_rows, dtype=np.int64)
        self._block_tables = np.zeros((max_rows, -(-max_len // block_size)), dtype=np.int32)
        self._num_blocks = [0] * max_rows

    def start(self, row: int, token_ids: Sequence[int]) -> None:
        """Begin a sequence in `row`; what was there is forgotten."""
        self.token_ids[row, : len(token_ids)] = token_ids
        self.num_tokens[row] = len(token_ids)
        self._num_blocks[row] = 0

    def append(self, rows: Sequence[int], token_ids: Sequence[int]) -> None:
        """One sampled token at the end of each of these sequences."""
        at = np.asarray(rows)
        self.token_ids[at, self.num_tokens[at]] = token_ids
        self.num_tokens[at] += 1

    def gather(self, step: StepInput) -> StepArrays:
        """The arrays of `step`, whose new blocks are taken into the tables first."""
        self._add_blocks(step)
        rows = np.array(step.rows, dtype=np.int64)
        computed = np.array(step.num_computed, dtype=np.int32)
        query_lens = np.array(step.num_tokens, dtype=np.int32)
        query_start = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum(query_lens, out=query_start[1:])
        seq_lens = computed + query_lens
        num_decodes = int(np.argmax(query_lens != 1)) if (query_lens != 1).any() else len(rows)
        token_rows = np.repeat(rows, query_lens)
        shift = np.repeat(computed - query_start[:-1], query_lens)
        positions = np.arange(query_start[-1], dtype=np.int64) + shift
        blocks = self._block_tables[token_rows, positions // self.block_size].astype(np.int64)
        num_blocks = -(-int(seq_lens.max()) // self.block_size)
        return StepArrays(
            token_ids=self.token_ids[token_rows, positions].astype(np.int64),
            positions=positions,
            slot_mapping=blocks * self.block_size + positions % self.block_size,
            block_tables=self._block_tables[rows, :num_blocks],
            query_start=query_start,
            query_lens=query_lens,
            seq_lens=seq_lens,
            num_decodes=num_decodes,
        )

    def _add_blocks(self, step: StepInput) -> None:
        for row, blocks in zip(step.rows, step.new_blocks, strict=True):
            if blocks:
                start = self._num_blocks[row]
                self._block_tables[row, start : start + len(blocks)] = blocks
                self._num_blocks[row] = start + len(blocks)
