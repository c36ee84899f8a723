"""A step's numbers where a CUDA graph reads them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dropless.engine.device_rows import DeviceRows
from dropless.engine.row_table import StepArrays
from dropless.engine.transfer import host_buffer, to_device
from dropless.layers.batch import ForwardBatch
from dropless.ops.attention import PagedBatch


@dataclass(frozen=True, slots=True)
class GraphSize:
    """What a graph has room for, exactly: smaller steps are padded. A sequence of several tokens
    has at least two, so that there can be `num_chunks` of them; 0: all have one."""

    num_tokens: int
    num_seqs: int
    num_chunks: int


@dataclass(frozen=True, slots=True)
class _Numbers:
    """All in one piece of memory, so that one copy brings them. As many new blocks as tokens."""

    whole: Tensor  # int64
    token_rows: Tensor  # [num_tokens] int64: whose next token it is; the spare row: `token_ids`
    token_ids: Tensor  # [num_tokens] int64
    positions: Tensor  # [num_tokens] int64
    slot_mapping: Tensor  # [num_tokens] int64
    block_places: Tensor  # [num_tokens] int64
    rows: Tensor  # [num_seqs] int64
    query_start: Tensor  # [num_seqs + 1] int32
    seq_lens: Tensor  # [num_seqs] int32
    block_ids: Tensor  # [num_tokens] int32

    @classmethod
    def over(cls, whole: Tensor, size: GraphSize) -> _Numbers:
        """Each part begins at a multiple of 16 bytes, which kernels are compiled for."""
        parts, start = [], 0
        for count, dtype in _layout(size):
            stop = start + _words(count, dtype)
            parts.append(whole[start:stop].view(dtype)[:count])
            start = stop
        return cls(whole, *parts)

    @staticmethod
    def count(size: GraphSize) -> int:
        """How many int64 they take."""
        return sum(_words(count, dtype) for count, dtype in _layout(size))


def _layout(size: GraphSize) -> list[tuple[int, torch.dtype]]:
    wide = [size.num_tokens] * 5 + [size.num_seqs]
    narrow = [size.num_seqs + 1, size.num_seqs, size.num_tokens]
    return [*((count, torch.int64) for count in wide), *((count, torch.int32) for count in narrow)]


def _words(count: int, dtype: torch.dtype) -> int:
    """int64s that so many elements take, rounded up to an even number."""
    return -(-count * dtype.itemsize // 16) * 2


class GraphInputs:
    """The inputs of one graph. What pads a step are sequences of the spare row: their tokens are
    written into the spare block of the cache, which belongs to no sequence."""

    def __init__(
        self, size: GraphSize, device_rows: DeviceRows, spare_block: int, block_size: int
    ) -> None:
        """The inputs are those of a step that is all padding, so far."""
        self._size = size
        self._device_rows = device_rows
        self._spare_block = spare_block
        self._spare_slot = spare_block * block_size
        self._device = device_rows.next_tokens.device
        whole = torch.empty(_Numbers.count(size), dtype=torch.int64, device=self._device)
        self._numbers = _Numbers.over(whole, size)
        self._fill(num_seqs=0, num_tokens=0)

    @property
    def rows(self) -> Tensor:
        """[num_seqs] int64, of the sequences."""
        return self._numbers.rows

    def put(self, arrays: StepArrays) -> None:
        """Take in a step of at most this size. New blocks beyond it, those of a long prefix that
        was cached, are written to the tables at once."""
        num_blocks, num_decodes = len(arrays.block_ids), arrays.num_decodes
        if num_blocks > self._size.num_tokens:
            places, block_ids = to_device(self._device, arrays.block_places, arrays.block_ids)
            self._device_rows.put_blocks(places, block_ids)
            num_blocks = 0
        self._fill(
            num_seqs=len(arrays.rows),
            num_tokens=len(arrays.positions),
            token_rows=arrays.rows[:num_decodes],
            token_ids=np.concatenate([np.zeros(num_decodes, np.int64), arrays.token_ids]),
            positions=arrays.positions,
            slot_mapping=arrays.slot_mapping,
            block_places=arrays.block_places[:num_blocks],
            rows=arrays.rows,
            query_start=arrays.query_start,
            seq_lens=arrays.seq_lens,
            block_ids=arrays.block_ids[:num_blocks],
        )

    def _fill(self, num_seqs: int, num_tokens: int, **values: NDArray[np.generic]) -> None:
        """Copy the numbers of a step to the device. The tokens that are left over are shared out
        evenly among the sequences that are."""
        count = _Numbers.count(self._size)
        buffer = host_buffer(self._device, count, dtype=torch.int64)
        host = _Numbers.over(buffer, self._size)
        seqs_left, tokens_left = self._size.num_seqs - num_seqs, self._size.num_tokens - num_tokens
        each = -(-tokens_left // max(1, seqs_left))
        starts = np.minimum(num_tokens + each * np.arange(seqs_left + 1), self._size.num_tokens)
        host.query_start.numpy()[num_seqs:] = starts
        host.seq_lens.numpy()[num_seqs:] = np.diff(starts)
        spare = self._device_rows.spare
        for target, padding in (
            (host.token_rows, spare),
            (host.token_ids, 0),
            (host.positions, 0),
            (host.slot_mapping, self._spare_slot),
            (host.block_places, spare * self._device_rows.max_blocks),
            (host.rows, spare),
            (host.block_ids, self._spare_block),
        ):
            target.fill_(padding)
        for name, numbers in values.items():
            getattr(host, name).numpy()[: len(numbers)] = numbers
        self._numbers.whole.copy_(buffer, non_blocking=True)

    def batch(self, kv_caches: list[tuple[Tensor, Tensor]]) -> ForwardBatch:
        """What the model computes: to be called while the graph is captured."""
        numbers, size = self._numbers, self._size
        self._device_rows.put_blocks(numbers.block_places, numbers.block_ids)
        token_ids = self._device_rows.next_tokens[numbers.token_rows]
        if size.num_chunks:
            is_given = numbers.token_rows == self._device_rows.spare
            token_ids = torch.where(is_given, numbers.token_ids, token_ids)
        paged = PagedBatch(
            slot_mapping=numbers.slot_mapping,
            block_tables=self._device_rows.block_tables[numbers.rows],
            query_start=numbers.query_start,
            seq_lens=numbers.seq_lens,
            num_decodes=size.num_seqs,
            num_chunks=size.num_chunks,
            query_lens_host=[],  # only the device knows them
            seq_lens_host=[],
        )
        return ForwardBatch(token_ids, numbers.positions, paged, kv_caches)
