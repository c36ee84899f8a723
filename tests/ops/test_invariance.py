"""The batch-invariant form of every op: a row's bits are those that it gets alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dropless.ops.activation import silu_mul
from dropless.ops.attention import paged_attention
from dropless.ops.fp8 import quantize_channels
from dropless.ops.half_linear import half_linear, pack_half
from dropless.ops.linear import linear
from dropless.ops.moe import fused_experts, route
from dropless.ops.norm import layer_norm, rms_norm
from dropless.ops.rope import rope_and_cache
from tests.ops.paged import Layout, batch_of, filled_cache, tables
from tests.ops.test_versions import DEVICES, Maker

ROWS = 150
SIZES = (1, 2, 3, 8, 17, 33, 64, 65, 129, ROWS)

Rows = Callable[[Tensor], tuple[Tensor, ...]]  # of row numbers [n]: what comes of these, [n, ...]


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[Maker], Rows]


def linear_case(inputs: int, outputs: int, *, fp8: bool = False) -> Case:
    def make(maker: Maker) -> Rows:
        x, weight = maker.normal(ROWS, inputs), maker.normal(outputs, inputs, scale=0.1)
        held, bias = quantize_channels(weight) if fp8 else weight, maker.normal(outputs)
        return lambda rows: (linear.invariant(x[rows], held, bias),)

    return Case(f"linear-{inputs}x{outputs}-fp8-{fp8}", make)


def half_linear_case(inputs: int, outputs: int) -> Case:
    def make(maker: Maker) -> Rows:
        if maker.dtype != torch.float32 or maker.device.type != "cpu":
            pytest.skip("multiplies float32 on CPUs only")
        x, weight = maker.normal(ROWS, inputs), pack_half(maker.normal(outputs, inputs))
        return lambda rows: (half_linear.invariant(x[rows], weight),)

    return Case(f"half_linear-{inputs}x{outputs}", make)


def silu_mul_case(width: int) -> Case:
    def make(maker: Maker) -> Rows:
        x = maker.normal(ROWS, 2 * width, scale=3.0)
        return lambda rows: (silu_mul.invariant(x[rows]),)

    return Case(f"silu_mul-{width}", make)


def norm_case(name: str, hidden: int) -> Case:
    norm = {"rms_norm": rms_norm, "layer_norm": layer_norm}[name]

    def make(maker: Maker) -> Rows:
        x, residual = maker.normal(ROWS, hidden, scale=3.0), maker.normal(ROWS, hidden)
        weight = maker.normal(hidden)
        return lambda rows: norm.invariant(x[rows], residual[rows], weight, 1e-5)

    return Case(f"{name}-{hidden}", make)


def rope_case(num_heads: int, head_dim: int) -> Case:
    def make(maker: Maker) -> Rows:
        qkv = maker.normal(ROWS, (num_heads + 2) * head_dim)
        rotary = torch.randn(ROWS, 2, head_dim, generator=maker.generator).to(maker.device)

        def run(rows: Tensor) -> tuple[Tensor, ...]:
            keys, values = (
                torch.zeros(ROWS, 1, 1, head_dim, dtype=maker.dtype, device=maker.device)
                for _ in "kv"
            )
            q = rope_and_cache.invariant(
                qkv[rows], rotary[rows], keys, values, rows,
                num_heads=num_heads, num_kv_heads=1, clip=0.7,
            )  # fmt: skip
            return q, keys[rows], values[rows]

        return run

    return Case(f"rope_and_cache-{num_heads}x{head_dim}", make)


def route_case(experts: int, top_k: int, norm_p: float | None) -> Case:
    def make(maker: Maker) -> Rows:
        x, weight = maker.normal(ROWS, 48), maker.normal(experts, 48)
        return lambda rows: route.invariant(x[rows], weight, top_k, norm_p)

    return Case(f"route-{experts}-top{top_k}-{norm_p}", make)


def experts_case(experts: int, top_k: int, *, elsewhere: int = 0, fp8: bool = False) -> Case:
    def make(maker: Maker) -> Rows:
        scores = torch.rand(ROWS, experts + elsewhere, generator=maker.generator)
        weights, ids = (part.to(maker.device) for part in scores.topk(top_k))
        x = maker.normal(ROWS, 48)
        gate_up = maker.normal(experts, 2 * 40, 48, scale=0.2)
        down = maker.normal(experts, 40, 48, scale=0.2).transpose(1, 2)
        held = [quantize_channels(part) if fp8 else part for part in (gate_up, down)]
        weights = maker.cast(weights)
        return lambda rows: (fused_experts.invariant(x[rows], *held, weights[rows], ids[rows]),)

    return Case(f"fused_experts-{experts}-top{top_k}-elsewhere-{elsewhere}-fp8-{fp8}", make)


CASES = [
    *(linear_case(*shape) for shape in ((64, 96), (45, 51), (576, 160))),
    *(linear_case(*shape, fp8=True) for shape in ((64, 96), (45, 51), (576, 160))),
    *(half_linear_case(*shape) for shape in ((64, 96), (45, 51), (576, 160))),
    *(silu_mul_case(width) for width in (24, 45, 1536)),
    *(norm_case(name, hidden) for name in ("rms_norm", "layer_norm") for hidden in (45, 576)),
    rope_case(5, 16),
    rope_case(9, 64),
    rope_case(64, 32),  # beyond some thousand heads a program has more of them
    route_case(16, 4, 1.0),
    route_case(7, 2, 2.0),
    route_case(7, 2, None),
    experts_case(16, 4),
    experts_case(3, 2, elsewhere=2),
    experts_case(16, 4, fp8=True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_row_is_what_it_is_alone(case: Case, device: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(len(case.name))
    run = case.make(Maker(dtype, dtype, torch.device(device), generator))
    alone = [run(torch.tensor([row], device=device)) for row in range(ROWS)]
    expected = [torch.cat(parts) for parts in zip(*alone, strict=True)]
    for size in SIZES:
        rows = torch.randperm(ROWS, generator=generator)[:size].to(device)
        for got, wanted in zip(run(rows), expected, strict=True):
            assert torch.equal(got, wanted[rows]), f"{size} rows"


LENGTHS = (1, 5, 63, 64, 65, 130, 200)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 16), (9, 3, 64), (6, 1, 40)])
def test_a_query_sees_the_same_however_its_sequence_is_cut_and_whatever_is_beside_it(
    heads: int, kv_heads: int, head_dim: int, device: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(head_dim)
    maker = Maker(dtype, dtype, torch.device(device), generator)
    queries = [maker.normal(length, heads, head_dim) for length in LENGTHS]
    keys, values = (
        [torch.randn(length, kv_heads, head_dim, generator=generator) for length in LENGTHS]
        for _ in "kv"
    )

    def attend(parts: list[tuple[int, int, int]]) -> list[Tensor]:
        """Queries `start` to `stop` of sequences, as (sequence, start, stop), in one step."""
        parts.sort(key=lambda part: part[2] - part[1])  # those with one query first
        layout = Layout(heads, kv_heads, head_dim, 8, tuple((b - a, b) for _, a, b in parts))
        block_tables = tables(layout, generator)
        caches = [
            maker.cast(filled_cache(layout, block_tables, [whole[i][:b] for i, _, b in parts]))
            for whole in (keys, values)
        ]
        batch = batch_of(layout, block_tables, maker.device)
        q = torch.cat([queries[i][a:b] for i, a, b in parts])
        out = paged_attention.invariant(q, *caches, batch, 0.2)
        return list(out.split([b - a for _, a, b in parts]))

    expected = [attend([(i, 0, length)])[0] for i, length in enumerate(LENGTHS)]
    choice = random.Random(head_dim)
    for _ in range(12):
        parts = []
        for i in choice.sample(range(len(LENGTHS)), choice.randint(1, len(LENGTHS))):
            stop = choice.randint(1, LENGTHS[i])
            parts.append((i, choice.choice([stop - 1, choice.randrange(stop)]), stop))
        for got, (i, start, stop) in zip(attend(parts), parts, strict=True):
            assert torch.equal(got, expected[i][start:stop]), (i, start, stop)
