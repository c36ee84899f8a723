"""Steps as CUDA graphs: hundreds of kernels, one launch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dropless.engine.device_rows import DeviceRows
from dropless.engine.graph_inputs import GraphInputs, GraphSize
from dropless.engine.row_table import StepArrays
from dropless.engine.sampler import Sampler
from dropless.models.decoder import CausalLM
from dropless.parallel.group import Group

# Of a step with prompt tokens. In larger ones the device is slower than the host's launches.
MOST_TOKENS = 4096


def batch_buckets(max_rows: int) -> list[int]:
    """The batch sizes that get a graph of their own: a step runs in the next larger one. Small
    ones double, larger ones grow by at most a half."""
    sizes = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    return [*(size for size in sizes if size < max_rows), max_rows]


def token_buckets(step_token_budget: int) -> list[int]:
    """The same for steps with prompt tokens. They are bound by arithmetic, so that padding costs
    time: above 256 tokens it is a fifth of a step at most."""
    fine, middle = range(64, 512, 64), range(512, 1024, 128)
    sizes = [16, 32, *fine, *middle, *range(1024, 2048, 256), *range(2048, MOST_TOKENS + 1, 512)]
    largest = min(step_token_budget, MOST_TOKENS)
    return [*(size for size in sizes if size < largest), largest]


@dataclass(frozen=True, slots=True)
class _DecodeGraph:
    """Two captured parts of a step, and the memory that they read and write. The second takes the
    likeliest tokens."""

    inputs: GraphInputs
    forward: torch.cuda.CUDAGraph
    logits: Tensor  # [size, vocab] float32
    choose: torch.cuda.CUDAGraph
    best: Tensor  # [size] float32
    token_ids: Tensor  # [size] int64


@dataclass(frozen=True, slots=True)
class _ForwardGraph:
    inputs: GraphInputs
    forward: torch.cuda.CUDAGraph


@dataclass(frozen=True, slots=True)
class Decoded:
    """A step that has been launched. Its tensors are valid until the next one is."""

    _graph: _DecodeGraph
    _num_rows: int

    @property
    def logits(self) -> Tensor:
        """[num_rows, vocab] float32."""
        return self._graph.logits[: self._num_rows]

    def choose(self) -> tuple[Tensor, Tensor]:
        """`Sampler.likeliest` of the logits; the tokens become the rows' next ones."""
        self._graph.choose.replay()
        return self._graph.best[: self._num_rows], self._graph.token_ids[: self._num_rows]


class StepGraphs:
    """Graphs for each batch size of steps in which every sequence has one token, up to the logits
    and the choice of tokens; and for each size of other steps, up to the hidden states. All are in
    one pool of memory, for one runs at a time."""

    def __init__(
        self,
        model: CausalLM,
        kv_caches: list[tuple[Tensor, Tensor]],
        device_rows: DeviceRows,
        sampler: Sampler,
        *,
        group: Group,
        spare_block: int,
        step_token_budget: int,
    ) -> None:
        """`spare_block` of the cache belongs to no sequence: padding goes there. Nothing is
        captured yet."""
        self._model = model
        self._kv_caches = kv_caches
        self._device_rows = device_rows
        self._sampler = sampler
        self._group = group
        self._spare_block = spare_block
        self._pool = torch.cuda.graph_pool_handle()
        self._batch_sizes = batch_buckets(device_rows.spare)
        self._step_sizes = token_buckets(step_token_budget)
        self._decode_graphs: dict[int, _DecodeGraph] = {}
        self._forward_graphs: dict[int, _ForwardGraph] = {}
        self._hidden = torch.empty(
            (self._step_sizes[-1], model.config.hidden_size),
            dtype=kv_caches[0][0].dtype,
            device=device_rows.next_tokens.device,
        )
        device_rows.block_tables[device_rows.spare] = spare_block

    @torch.inference_mode()
    def capture_all(self, progress: Callable[[float], None]) -> None:
        """Capture every size, the largest first so that the others fit into its memory; before the
        first, all are computed once, for kernels are compiled and chosen then, in memory that is
        free again when capturing begins. `progress` is told which part is done. On several ranks
        all do the same together."""
        count = 2 * len(self._step_sizes) + len(self._batch_sizes)
        for done, size in enumerate(reversed(self._step_sizes)):
            progress(done / count)
            self._forward(size, self._forward_inputs(size))
        for done, size in enumerate(reversed(self._step_sizes), len(self._step_sizes)):
            progress(done / count)
            self._forward_graphs[size] = self._capture_forward(size)
        for done, size in enumerate(reversed(self._batch_sizes), 2 * len(self._step_sizes)):
            progress(done / count)
            self._decode_graphs[size] = self._capture_decode(size)

    def drop_all(self) -> None:
        """Let go of every graph, though a launched step may refer to one. May be called again."""
        for decode in self._decode_graphs.values():
            decode.forward.reset()
            decode.choose.reset()
        for other in self._forward_graphs.values():
            other.forward.reset()
        self._decode_graphs.clear()
        self._forward_graphs.clear()

    def decode(self, arrays: StepArrays) -> Decoded:
        """Compute the logits of a step whose every sequence has one token."""
        num_rows = len(arrays.rows)
        graph = self._decode_graphs[_next(self._batch_sizes, num_rows)]
        graph.inputs.put(arrays)
        graph.forward.replay()
        return Decoded(graph, num_rows)

    def serves(self, num_tokens: int) -> bool:
        """Whether `forward` can compute a step of so many tokens."""
        return num_tokens <= self._step_sizes[-1]

    def forward(self, arrays: StepArrays) -> Tensor:
        """The hidden states of any step that it `serves`: [num_tokens, hidden], valid until the
        next one is launched."""
        num_tokens = len(arrays.positions)
        graph = self._forward_graphs[_next(self._step_sizes, num_tokens)]
        graph.inputs.put(arrays)
        graph.forward.replay()
        return self._hidden[:num_tokens]

    def _capture_decode(self, size: int) -> _DecodeGraph:
        inputs = self._inputs(GraphSize(num_tokens=size, num_seqs=size, num_chunks=0))

        def logits_of_step() -> Tensor:
            return self._model.logits(self._model(inputs.batch(self._kv_caches)))

        for _ in range(2):  # kernels are compiled and chosen before anything is captured
            self._choose(inputs, logits_of_step())
        forward, choose = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with self._capturing(forward):
            logits = logits_of_step()
        with self._capturing(choose):
            best, token_ids = self._choose(inputs, logits)
        return _DecodeGraph(inputs, forward, logits, choose, best, token_ids)

    def _capture_forward(self, size: int) -> _ForwardGraph:
        inputs = self._forward_inputs(size)
        forward = torch.cuda.CUDAGraph()
        with self._capturing(forward):
            self._forward(size, inputs)
        return _ForwardGraph(inputs, forward)

    def _forward(self, size: int, inputs: GraphInputs) -> None:
        self._hidden[:size] = self._model(inputs.batch(self._kv_caches))

    def _forward_inputs(self, size: int) -> GraphInputs:
        num_seqs = min(size, self._device_rows.spare) + 1  # one at least that pads
        return self._inputs(GraphSize(size, num_seqs, num_chunks=min(num_seqs, size // 2)))

    def _inputs(self, size: GraphSize) -> GraphInputs:
        block_size = self._kv_caches[0][0].shape[1]
        return GraphInputs(size, self._device_rows, self._spare_block, block_size)

    def _capturing(self, graph: torch.cuda.CUDAGraph) -> torch.cuda.graph:
        torch.cuda.synchronize(self._hidden.device)
        return torch.cuda.graph(graph, pool=self._pool)

    def _choose(self, inputs: GraphInputs, logits: Tensor) -> tuple[Tensor, Tensor]:
        best, token_ids = self._sampler.likeliest(logits)
        token_ids = self._group.broadcast(token_ids)
        self._device_rows.put_tokens(inputs.rows, token_ids)
        return best, token_ids


def _next(buckets: Sequence[int], size: int) -> int:
    return buckets[bisect_left(buckets, size)]
