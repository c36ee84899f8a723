"""Steps in which every sequence has one token, as CUDA graphs: hundreds of kernels, one launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dropless.engine.row_table import StepArrays
from dropless.layers.batch import ForwardBatch
from dropless.models.decoder import CausalLM
from dropless.ops.attention import PagedBatch


def batch_buckets(max_rows: int) -> list[int]:
    """The batch sizes that get a graph of their own: a step runs in the next larger one. Small
    ones double, larger ones grow by at most a half."""
    sizes = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    return [*(size for size in sizes if size < max_rows), max_rows]


@dataclass(frozen=True, slots=True)
class _Graph:
    """A captured step, and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    batch: ForwardBatch
    logits: Tensor  # [size, vocab] float32


class DecodeGraphs:
    """One graph for each batch size, all in one pool of memory. Rows that pad a batch compute one
    token into a cache block that belongs to no sequence."""

    def __init__(
        self,
        model: CausalLM,
        kv_caches: list[tuple[Tensor, Tensor]],
        *,
        device: torch.device,
        max_rows: int,
        max_model_len: int,
        spare_block: int,
    ) -> None:
        """`spare_block` is the one for padding; nothing is captured yet."""
        block_size = kv_caches[0][0].shape[1]
        self._model = model
        self._kv_caches = kv_caches
        self._device = device
        self._buckets = batch_buckets(max_rows)
        self._max_blocks = -(-max_model_len // block_size)
        self._spare_block = spare_block
        self._spare_slot = spare_block * block_size
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, _Graph] = {}

    @torch.inference_mode()
    def capture_all(self, progress: Callable[[float], None]) -> None:
        """Capture every batch size, the largest first so that the others fit into its memory.
        `progress` is told which part is done. On several ranks all capture the same together."""
        for done, size in enumerate(reversed(self._buckets)):
            progress(done / len(self._buckets))
            self._graphs[size] = self._capture(size)

    def logits(self, arrays: StepArrays) -> Tensor:
        """[num_seqs, vocab] float32 of a step whose every sequence has one token; valid until the
        next call."""
        num_rows = arrays.num_decodes
        graph = self._graphs[next(size for size in self._buckets if size >= num_rows)]
        self._fill(graph.batch, arrays, num_rows)
        graph.graph.replay()
        return graph.logits[:num_rows]

    def _capture(self, size: int) -> _Graph:
        batch = self._padding(size)
        for _ in range(2):  # kernels are compiled and chosen before anything is captured
            logits = self._model.logits(self._model(batch))
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._model.logits(self._model(batch))
        return _Graph(graph, batch, logits)

    def _padding(self, size: int) -> ForwardBatch:
        """A batch of padding alone."""

        def filled(value: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=self._device)

        paged = PagedBatch(
            slot_mapping=filled(self._spare_slot, size),
            block_tables=filled(self._spare_block, size, self._max_blocks, dtype=torch.int32),
            query_start=torch.arange(size + 1, dtype=torch.int32, device=self._device),
            seq_lens=filled(1, size, dtype=torch.int32),
            num_decodes=size,
            query_lens_host=[1] * size,
            seq_lens_host=[1] * size,
        )
        return ForwardBatch(filled(0, size), filled(0, size), paged, self._kv_caches)

    def _fill(self, batch: ForwardBatch, arrays: StepArrays, num_rows: int) -> None:
        """Put a step into a graph's memory; the rows after it become padding again."""
        size = len(batch.token_ids)

        def put(target: Tensor, values: np.ndarray, padding: int) -> None:
            padded = np.full(size, padding, dtype=values.dtype)
            padded[:num_rows] = values
            target.copy_(torch.from_numpy(padded), non_blocking=True)

        put(batch.token_ids, arrays.token_ids, 0)
        put(batch.positions, arrays.positions, 0)
        put(batch.paged.slot_mapping, arrays.slot_mapping, self._spare_slot)
        put(batch.paged.seq_lens, arrays.seq_lens, 1)
        width = arrays.block_tables.shape[1]
        tables = torch.from_numpy(np.ascontiguousarray(arrays.block_tables))
        batch.paged.block_tables[:num_rows, :width].copy_(tables, non_blocking=True)
        batch.paged.block_tables[num_rows:, 0] = self._spare_block
