"""A roofline of the engine: what a step must read and compute, and how long that takes.

A step's work follows from the model's shape and from how it is split over GPUs. Of a part (its
attention matrices, cache, router, experts, head) the limit is the longer of two times: reading its
bytes at the measured bandwidth, and its operations at the measured rate of matrix products. The
prediction adds both, for kernels overlap them in part only, each at the share of its ceiling that
the engine was measured to reach, and adds what the limit leaves out: activations, all-reduces, and
fixed times of a layer and a step (`dropless.bench.gpus.Efficiency`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

import numpy as np

from dropless.bench.gpus import Efficiency, Gpu, Precision

_BF16 = 2  # bytes
_ALL_REDUCES = 2  # a layer: behind attention and behind the feed-forward layer
_DRAWN_TOKENS = 1 << 15  # of all draws together


class Shape(Protocol):
    """What is needed of `dropless.models.config.ModelConfig`."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def ffn_width(self) -> int: ...
    @property
    def num_experts(self) -> int: ...
    @property
    def top_k(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model lies on its GPUs."""

    count: int
    quantization: Precision = "none"
    expert_parallel: bool = False
    has_collectives: bool = True  # False: one rank alone, as benchmarks of a slice measure it

    def __str__(self) -> str:
        """Such as TP8 fp8: tensor parallel on 8 GPUs; EP is expert parallel."""
        precision = "bf16" if self.quantization == "none" else self.quantization
        if self.count == 1:
            return f"1 GPU {precision}"
        return f"{'EP' if self.expert_parallel else 'TP'}{self.count} {precision}"


@dataclass(frozen=True, slots=True)
class Tokens:
    """A step's tokens, of all sequences together."""

    count: int
    attended: float  # keys that queries look at, summed over queries
    cached: float  # keys that lie in the cache, read once
    sampled: int  # tokens whose logits are needed

    @classmethod
    def decode(cls, batch: int, context: float) -> Tokens:
        """One token each of `batch` sequences that are `context` long."""
        return cls(batch, batch * context, batch * context, batch)


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes to read and operations (a multiplication and an addition are two) of one rank."""

    num_bytes: float
    operations: float
    precision: Precision = "none"


@dataclass(frozen=True, slots=True)
class Work:
    """What a step is for one rank, the busiest."""

    parts: dict[str, Part]
    activation_bytes: float
    exchanges: int  # collectives between ranks
    link_bytes: float  # that all of them move over a rank's link

    @property
    def num_bytes(self) -> float:
        """Weights and cache, which any engine must read."""
        return sum(part.num_bytes for part in self.parts.values())


def step_work(shape: Shape, layout: Layout, tokens: Tokens) -> Work:
    """All layers of a step and the head. Routing is taken to be even."""
    ranks, hidden, layers = layout.count, shape.hidden_size, shape.num_layers
    query_size = shape.num_heads * shape.head_dim
    kv_size = shape.num_kv_heads * shape.head_dim
    width = 1 if layout.quantization == "fp8" else _BF16
    attention_matrices = hidden * (query_size + 2 * kv_size) + query_size * hidden
    hit, pairs, own_width = _experts(shape, layout, tokens.count)
    expert_matrices = 3 * hidden * own_width
    router = hidden * shape.num_experts if shape.num_experts > 1 else 0
    head = shape.vocab_size * hidden / ranks

    def all_layers(num_bytes: float, operations: float, precision: Precision = "none") -> Part:
        return Part(layers * num_bytes, layers * operations, precision)

    parts = {
        "attention": all_layers(
            width * attention_matrices / ranks,
            2 * tokens.count * attention_matrices / ranks,
            layout.quantization,
        ),
        "cache": all_layers(
            2 * _BF16 * tokens.cached * kv_size / ranks, 4 * tokens.attended * query_size / ranks
        ),
        "router": all_layers(_BF16 * router, 2 * tokens.count * router),
        "experts": all_layers(
            width * hit * expert_matrices, 2 * pairs * expert_matrices, layout.quantization
        ),
        "head": Part(_BF16 * head, 2 * tokens.sampled * head),
    }
    # Each is written once and read once: the normed and the residual stream before and behind both
    # halves of a layer, queries, keys, values and their mixture, and an expert's rows, their
    # activations and what comes of them.
    stream = tokens.count * 12 * hidden
    heads = tokens.count * 4 * (query_size + kv_size) / ranks
    rows = pairs * (3 * hidden + 2 * own_width)
    work = Work(parts, _BF16 * layers * (stream + heads + rows), 0, 0.0)
    if ranks == 1 or not layout.has_collectives:
        return work
    # An all-reduce moves each number twice, to where it is summed and back; the logits once.
    numbers = 2 * _ALL_REDUCES * layers * tokens.count * hidden + tokens.sampled * shape.vocab_size
    link_bytes = _BF16 * numbers * (ranks - 1) / ranks
    return replace(work, exchanges=_ALL_REDUCES * layers + 1, link_bytes=link_bytes)


def limit_seconds(work: Work, gpu: Gpu) -> float:
    """What no engine on these ceilings can beat: weights and cache read once, operations at the
    full rate, in each part whichever takes longer; everything else in no time."""
    return sum(
        max(_reading(part, gpu), part.operations / gpu.operations_per_s(part.precision))
        for part in work.parts.values()
    )


@dataclass(frozen=True, slots=True)
class Ideal:
    """Seconds of each kind of work at the GPU's ceilings."""

    reading: float
    computing: float
    exchanging: float


def ideal_seconds(work: Work, gpu: Gpu) -> Ideal:
    """Links that are not measured count as infinitely fast."""
    parts = [*work.parts.values(), Part(work.activation_bytes, 0.0)]
    exchanging = work.exchanges * (gpu.all_reduce_us or 0.0) / 1e6
    if gpu.link_gb_s is not None:
        exchanging += work.link_bytes / (1e9 * gpu.link_gb_s)
    return Ideal(
        sum(_reading(part, gpu) for part in parts),
        sum(part.operations / gpu.operations_per_s(part.precision) for part in parts),
        exchanging,
    )


def decode_seconds(work: Work, gpu: Gpu, efficiency: Efficiency, num_layers: int) -> float:
    """A step in which every sequence has one token."""
    fixed_us = efficiency.step_us + num_layers * efficiency.decode_layer_us
    return _seconds(work, gpu, efficiency.bandwidth_share, efficiency.decode_matrix_share, fixed_us)


def prefill_seconds(work: Work, gpu: Gpu, efficiency: Efficiency, num_layers: int) -> float:
    """A step of prompts."""
    fixed_us = efficiency.step_us + num_layers * efficiency.prefill_layer_us
    return _seconds(
        work, gpu, efficiency.bandwidth_share, efficiency.prefill_matrix_share, fixed_us
    )


def prefill_steps(num_prompts: int, length: int, token_budget: int) -> Iterator[Tokens]:
    """The steps in which prompts that arrive together are computed, in order, in chunks where the
    budget cuts them."""
    room = token_budget
    count = attended = cached = sampled = 0
    for _ in range(num_prompts):
        begin = 0
        while begin < length:
            end = min(length, begin + room)
            count += end - begin
            attended += (begin + 1 + end) * (end - begin) // 2
            cached += end
            sampled += end == length
            room -= end - begin
            begin = end
            if room == 0:
                yield Tokens(count, attended, cached, sampled)
                room = token_budget
                count = attended = cached = sampled = 0
    if count:
        yield Tokens(count, attended, cached, sampled)


def _seconds(
    work: Work, gpu: Gpu, bandwidth_share: float, matrix_share: float, fixed_us: float
) -> float:
    ideal = ideal_seconds(work, gpu)
    busy = ideal.reading / bandwidth_share + ideal.computing / matrix_share
    return busy + ideal.exchanging + fixed_us / 1e6


def _reading(part: Part, gpu: Gpu) -> float:
    return part.num_bytes / (1e12 * gpu.bandwidth_tb_s)


def _experts(shape: Shape, layout: Layout, tokens: int) -> tuple[float, float, float]:
    """Of the busiest rank: experts that a step reads, pairs of token and expert that it computes,
    and the width that it has of each expert."""
    experts, top_k = shape.num_experts, shape.top_k
    if layout.expert_parallel and layout.count > 1:
        hit, pairs = _busiest_rank(experts, top_k, layout.count, tokens)
        return hit, pairs, shape.ffn_width
    hit = experts * (1.0 - (1.0 - top_k / experts) ** tokens)
    return hit, tokens * top_k, shape.ffn_width / layout.count


@cache
def _busiest_rank(experts: int, top_k: int, ranks: int, tokens: int) -> tuple[float, float]:
    """The most experts hit, and the most pairs, that any rank has: the means over draws of even
    routing, the same in each run."""
    draws = max(1, min(512, _DRAWN_TOKENS // tokens))
    scores = np.random.default_rng(0).random((draws, tokens, experts), dtype=np.float32)
    chosen = np.argpartition(scores, top_k - 1, axis=-1)[..., :top_k].reshape(draws, -1)
    pairs = np.stack([np.bincount(ids, minlength=experts) for ids in chosen])
    by_rank = pairs.reshape(draws, ranks, -1)
    hit = (by_rank > 0).sum(-1).max(-1).mean()
    return float(hit), float(by_rank.sum(-1).max(-1).mean())
