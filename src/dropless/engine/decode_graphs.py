"""Steps in which every sequence has one token, as CUDA graphs: hundreds of kernels, one launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dropless.engine.device_rows import DeviceRows
from dropless.engine.row_table import StepArrays
from dropless.engine.sampler import Sampler
from dropless.engine.transfer import host_buffer, to_device
from dropless.layers.batch import ForwardBatch
from dropless.models.decoder import CausalLM
from dropless.ops.attention import PagedBatch
from dropless.parallel.group import Group


def batch_buckets(max_rows: int) -> list[int]:
    """The batch sizes that get a graph of their own: a step runs in the next larger one. Small
    ones double, larger ones grow by at most a half."""
    sizes = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    return [*(size for size in sizes if size < max_rows), max_rows]


@dataclass(frozen=True, slots=True)
class _Inputs:
    """A step's numbers in one piece of memory [6, size] int64, and each row of it. Those of 32 bits
    take the first half of theirs."""

    whole: Tensor
    rows: Tensor
    positions: Tensor
    slot_mapping: Tensor
    block_places: Tensor
    seq_lens: Tensor  # int32
    block_ids: Tensor  # int32

    @classmethod
    def over(cls, whole: Tensor) -> _Inputs:
        size = whole.shape[1]
        halves = [row.view(torch.int32)[:size] for row in whole[4:]]
        return cls(whole, *whole[:4], *halves)


@dataclass(frozen=True, slots=True)
class _Graph:
    """Two captured parts of a step, and the memory that they read and write. The second takes the
    likeliest tokens."""

    inputs: _Inputs
    forward: torch.cuda.CUDAGraph
    logits: Tensor  # [size, vocab] float32
    choose: torch.cuda.CUDAGraph
    best: Tensor  # [size] float32
    token_ids: Tensor  # [size] int64


@dataclass(frozen=True, slots=True)
class Decoded:
    """A step that has been launched. Its tensors are valid until the next one is."""

    _graph: _Graph
    _num_rows: int

    @property
    def logits(self) -> Tensor:
        """[num_rows, vocab] float32."""
        return self._graph.logits[: self._num_rows]

    def choose(self) -> tuple[Tensor, Tensor]:
        """`Sampler.likeliest` of the logits; the tokens become the rows' next ones."""
        self._graph.choose.replay()
        return self._graph.best[: self._num_rows], self._graph.token_ids[: self._num_rows]


class DecodeGraphs:
    """Graphs for each batch size, all in one pool of memory. Rows that pad a batch are the spare
    row, which computes one token into a cache block that belongs to no sequence."""

    def __init__(
        self,
        model: CausalLM,
        kv_caches: list[tuple[Tensor, Tensor]],
        device_rows: DeviceRows,
        sampler: Sampler,
        *,
        device: torch.device,
        group: Group,
        spare_block: int,
    ) -> None:
        """`spare_block` is the one for padding; nothing is captured yet."""
        self._model = model
        self._kv_caches = kv_caches
        self._device_rows = device_rows
        self._sampler = sampler
        self._device = device
        self._group = group
        self._buckets = batch_buckets(device_rows.spare)
        self._spare_block = spare_block
        self._spare_slot = spare_block * kv_caches[0][0].shape[1]
        self._query_start = torch.arange(self._buckets[-1] + 1, dtype=torch.int32, device=device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, _Graph] = {}
        device_rows.block_tables[device_rows.spare] = spare_block

    @torch.inference_mode()
    def capture_all(self, progress: Callable[[float], None]) -> None:
        """Capture every batch size, the largest first so that the others fit into its memory.
        `progress` is told which part is done. On several ranks all capture the same together."""
        for done, size in enumerate(reversed(self._buckets)):
            progress(done / len(self._buckets))
            self._graphs[size] = self._capture(size)

    def launch(self, arrays: StepArrays) -> Decoded:
        """Compute the logits of a step whose every sequence has one token."""
        num_rows = arrays.num_decodes
        graph = self._graphs[next(size for size in self._buckets if size >= num_rows)]
        graph.inputs.whole.copy_(self._pack(graph, arrays), non_blocking=True)
        graph.forward.replay()
        return Decoded(graph, num_rows)

    def _capture(self, size: int) -> _Graph:
        inputs = _Inputs.over(torch.zeros(6, size, dtype=torch.int64, device=self._device))
        self._pad(inputs, 0, 0)
        for _ in range(2):  # kernels are compiled and chosen before anything is captured
            self._choose(inputs, self._forward(inputs))
        torch.cuda.synchronize(self._device)
        forward, choose = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forward, pool=self._pool):
            logits = self._forward(inputs)
        with torch.cuda.graph(choose, pool=self._pool):
            best, token_ids = self._choose(inputs, logits)
        return _Graph(inputs, forward, logits, choose, best, token_ids)

    def _forward(self, inputs: _Inputs) -> Tensor:
        """[size, vocab] float32."""
        size = len(inputs.rows)
        self._device_rows.put_blocks(inputs.block_places, inputs.block_ids)
        paged = PagedBatch(
            slot_mapping=inputs.slot_mapping,
            block_tables=self._device_rows.block_tables[inputs.rows],
            query_start=self._query_start[: size + 1],
            seq_lens=inputs.seq_lens,
            num_decodes=size,
            query_lens_host=[1] * size,
            seq_lens_host=[1] * size,
        )
        token_ids = self._device_rows.next_tokens[inputs.rows]
        batch = ForwardBatch(token_ids, inputs.positions, paged, self._kv_caches)
        return self._model.logits(self._model(batch))

    def _choose(self, inputs: _Inputs, logits: Tensor) -> tuple[Tensor, Tensor]:
        best, token_ids = self._sampler.likeliest(logits)
        token_ids = self._group.broadcast(token_ids)
        self._device_rows.put_tokens(inputs.rows, token_ids)
        return best, token_ids

    def _pack(self, graph: _Graph, arrays: StepArrays) -> Tensor:
        """A step's numbers as the graph's inputs, on the host; what is left is padding."""
        size, num_rows = graph.inputs.whole.shape[1], arrays.num_decodes
        num_blocks = len(arrays.block_ids)
        if num_blocks > size:  # a long cached prefix: more blocks than tokens
            places, block_ids = to_device(self._device, arrays.block_places, arrays.block_ids)
            self._device_rows.put_blocks(places, block_ids)
            num_blocks = 0
        host = _Inputs.over(host_buffer(self._device, 6, size, dtype=torch.int64))
        for target, values in (
            (host.rows, arrays.rows),
            (host.positions, arrays.positions),
            (host.slot_mapping, arrays.slot_mapping),
            (host.seq_lens, arrays.seq_lens),
            (host.block_places, arrays.block_places[:num_blocks]),
            (host.block_ids, arrays.block_ids[:num_blocks]),
        ):
            target.numpy()[: len(values)] = values
        self._pad(host, num_rows, num_blocks)
        return host.whole

    def _pad(self, inputs: _Inputs, num_rows: int, num_blocks: int) -> None:
        """Fill what follows so many rows and new blocks with the spare row's values."""
        spare = self._device_rows.spare
        inputs.rows[num_rows:] = spare
        inputs.positions[num_rows:] = 0
        inputs.slot_mapping[num_rows:] = self._spare_slot
        inputs.seq_lens[num_rows:] = 1
        inputs.block_places[num_blocks:] = spare * self._device_rows.max_blocks
        inputs.block_ids[num_blocks:] = self._spare_block
