"""Every version of every op against its reference, in float32 and in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dropless.ops.activation import silu_mul
from dropless.ops.attention import paged_attention, rotary_attention
from dropless.ops.attention_linear import attention_linear
from dropless.ops.fp8 import Fp8Tensor, quantize_channels, quantize_tokens
from dropless.ops.linear import linear
from dropless.ops.moe import (
    ExpertOutputs,
    Grouping,
    Routed,
    combine,
    fused_experts,
    route,
)
from dropless.ops.norm import layer_norm, rms_norm
from dropless.ops.norm_linear import norm_linear
from dropless.ops.norm_route import norm_route
from dropless.ops.registry import Op
from dropless.ops.rope import rope_and_cache
from tests.ops.paged import LAYOUTS, Layout, batch_of, empty_cache, filled_cache, tables

# Allowed ||a - b|| / ||b||. In 8 bits, what lies between two numbers may fall to either of them.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
# One value that rounds the other way, after a sum of other rounding, shows in so small a shape;
# matrix units of Hopper keep 14 bits of a sum of 8-bit products.
TOLERANCE_FP8 = {torch.float32: 2e-2, torch.bfloat16: 3e-2}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


@dataclass(frozen=True)
class Maker:
    """Makes the same random inputs in any form: rounded to `rounding`, held in `dtype`."""

    rounding: torch.dtype
    dtype: torch.dtype
    device: torch.device
    generator: torch.Generator

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return self.cast(torch.randn(shape, generator=self.generator) * scale)

    def cast(self, x: Tensor) -> Tensor:
        return x.to(self.rounding).to(self.dtype).to(self.device)


@dataclass(frozen=True)
class Case:
    """An op and its inputs; `run` returns all that the op made or changed."""

    name: str
    op: Op[..., Any]
    run: Callable[[Callable[..., Any], Maker], tuple[Tensor, ...]]
    fp8: bool = False


def norm_case(op: Op[..., Any], tokens: int, hidden: int, *, residual: bool) -> Case:
    def run(version: Callable[..., Any], make: Maker) -> tuple[Tensor, ...]:
        x = make.normal(tokens, hidden, scale=3.0)
        before = make.normal(tokens, hidden) if residual else None
        normed, summed = version(x, before, make.normal(hidden), 1e-5)
        return normed, summed

    return Case(f"{op.reference.__name__}-{tokens}x{hidden}-{residual}", op, run)


def expert_outputs(
    make: Maker, tokens: int, hidden: int, top_k: int, *, placed: bool
) -> ExpertOutputs:
    """Of six experts, of which the first and the last are not here: their rows are NaN."""
    ids = torch.rand(tokens, 6, generator=make.generator).topk(top_k).indices - 1
    made = make.normal(tokens * top_k, hidden, scale=3.0)
    made[((ids < 0) | (ids >= 4)).flatten().to(make.device)] = torch.nan
    places = None
    if placed:
        order = torch.randperm(len(made), generator=make.generator)
        made, places = made[order.to(make.device)], order.argsort().int().to(make.device)
    weights = make.cast(torch.rand(tokens, top_k, generator=make.generator))
    return ExpertOutputs(made, places, weights, ids.to(make.device), 4)


def combine_case(tokens: int, hidden: int, top_k: int, *, placed: bool) -> Case:
    def run(version: Callable[..., Any], make: Maker) -> tuple[Tensor, ...]:
        return (version(expert_outputs(make, tokens, hidden, top_k, placed=placed)),)

    return Case(f"combine-{tokens}x{hidden}-top{top_k}-placed-{placed}", combine, run)


def experts_norm_case(
    op: Op[..., Any], tokens: int, hidden: int, *, placed: bool, residual: bool
) -> Case:
    def run(version: Callable[..., Any], make: Maker) -> tuple[Tensor, ...]:
        x = expert_outputs(make, tokens, hidden, 4, placed=placed)
        before = make.normal(tokens, hidden) if residual else None
        normed, summed = version(x, before, make.normal(hidden), 1e-5)
        return normed, summed

    name = f"{op.reference.__name__}-of-experts-{tokens}x{hidden}-placed-{placed}-{residual}"
    return Case(name, op, run)


def norm_linear_case(
    tokens: int,
    inputs: int,
    outputs: int,
    *,
    fp8: bool,
    centred: bool = True,
    experts: bool = False,
    residual: bool = True,
    bias: bool = False,
) -> Case:
    def run(version: Callable[..., Any], make: Maker) -> tuple[Tensor, ...]:
        x: Tensor | ExpertOutputs = make.normal(tokens, inputs, scale=3.0)
        if experts:
            x = expert_outputs(make, tokens, inputs, 4, placed=tokens % 2 == 0)
        before = make.normal(tokens, inputs) if residual else None
        weight = make.normal(outputs, inputs, scale=0.1)
        held = quantize_channels(weight) if fp8 else weight
        added = make.normal(outputs) if bias else None
        made, summed = version(x, before, make.normal(inputs), 1e-5, held, added, centred=centred)
        return made, summed

    name = f"norm_linear-{tokens}x{inputs}x{outputs}-fp8-{fp8}-centred-{centred}"
    name += f"-experts-{experts}-residual-{residual}-bias-{bias}"
    return Case(name, norm_linear, run, fp8)


def silu_mul_case(tokens: int, width: int) -> Case:
    def run(version: Callable[..., Any], make: Maker) -> tuple[Tensor, ...]:
        return (version(make.normal(tokens, 2 * width, scale=3.0)),)

    return Case(f"silu_mul-{tokens}x{width}", silu_mul, run)


def random_rotary(make: Maker, tokens: int, head_dim: int) -> Tensor:
    """[tokens, 2, head_dim] float32, as if of tokens at random positions."""
    angles = torch.rand(tokens, head_dim // 2, generator=make.generator) * 6.0
    cos, sin = angles.cos(), angles.sin()
    rows = torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)], dim=1)
    return rows.to(make.device)


def rope_case(index: int, clip: float | None) -> Case:
    layout = LAYOUTS[index]

    def run(version: Callable[..., Any], make: Maker) -> tuple[Tensor, ...]:
        block_tables = tables(layout, make.generator)
        batch = batch_of(layout, block_tables, make.device)
        width = (layout.num_heads + 2 * layout.num_kv_heads) * layout.head_dim
        caches = [make.cast(empty_cache(layout, block_tables)) for _ in "kv"]
        queries = version(
            make.normal(layout.num_tokens, width),
            random_rotary(make, layout.num_tokens, layout.head_dim),
            *caches,
            batch.slot_mapping,
            num_heads=layout.num_heads,
            num_kv_heads=layout.num_kv_heads,
            clip=clip,
        )
        return queries, *caches

    return Case(f"rope_and_cache-{index}-clip-{clip}", rope_and_cache, run)


def rotary_attention_case(index: int, clip: float | None) -> Case:
    def run(version: Callable[..., Any], make: Maker) -> tuple[Tensor, ...]:
        return attend(version, make, LAYOUTS[index], clip)

    return Case(f"rotary_attention-{index}-clip-{clip}", rotary_attention, run)


def attention_linear_case(index: int, *, fp8: bool, bias: bool = False) -> Case:
    layout = LAYOUTS[index]

    def run(version: Callable[..., Any], make: Maker) -> tuple[Tensor, ...]:
        weight = make.normal(48, layout.num_heads * layout.head_dim, scale=0.1)
        held = quantize_channels(weight) if fp8 else weight
        return attend(version, make, layout, 0.7, held, make.normal(48) if bias else None)

    return Case(f"attention_linear-{index}-fp8-{fp8}-bias-{bias}", attention_linear, run, fp8)


def attend(
    version: Callable[..., Any], make: Maker, layout: Layout, clip: float | None, *behind: Any
) -> tuple[Tensor, ...]:
    """What comes of it, and the caches, where the step's own tokens are not yet."""
    block_tables = tables(layout, make.generator)
    caches = []
    for _ in "kv":
        heads = (layout.num_kv_heads, layout.head_dim)
        contents = [
            torch.randn(length - queries, *heads, generator=make.generator)
            for queries, length in layout.sequences
        ]
        caches.append(make.cast(filled_cache(layout, block_tables, contents)))
    width = (layout.num_heads + 2 * layout.num_kv_heads) * layout.head_dim
    out = version(
        make.normal(layout.num_tokens, width),
        random_rotary(make, layout.num_tokens, layout.head_dim),
        *caches,
        batch_of(layout, block_tables, make.device),
        0.2,
        *behind,
        num_heads=layout.num_heads,
        num_kv_heads=layout.num_kv_heads,
        clip=clip,
    )
    return out, *caches


def attention_case(index: int) -> Case:
    layout = LAYOUTS[index]

    def run(version: Callable[..., Any], make: Maker) -> tuple[Tensor, ...]:
        block_tables = tables(layout, make.generator)
        caches = []
        for _ in "kv":
            heads = (layout.num_kv_heads, layout.head_dim)
            contents = [
                torch.randn(length, *heads, generator=make.generator)
                for _, length in layout.sequences
            ]
            caches.append(make.cast(filled_cache(layout, block_tables, contents)))
        q = make.normal(layout.num_tokens, layout.num_heads + 2, layout.head_dim)[:, :-2]
        batch = batch_of(layout, block_tables, make.device)
        first = version(q, *caches, batch, 0.2)
        other_layer = version(q * 2, *caches[::-1], batch, 0.2)
        return first, other_layer

    return Case(f"paged_attention-{index}", paged_attention, run)


def route_case(
    tokens: int, experts: int, top_k: int, norm_p: float | None, hidden: int = 48
) -> Case:
    def run(version: Callable[..., Any], make: Maker) -> tuple[Tensor, ...]:
        x, weight = make.normal(tokens, hidden), make.normal(experts, hidden, scale=hidden**-0.5)
        weights, ids = version(x, weight, top_k, norm_p)
        spread = weights.new_zeros(tokens, experts).scatter(1, ids, weights)
        return (spread,)  # near ties may stand in either order

    return Case(f"route-{tokens}x{hidden}x{experts}-top{top_k}-{norm_p}", route, run)


def norm_route_case(
    tokens: int,
    hidden: int,
    *,
    here: int = 16,
    width: int = 2080,
    fp8: bool = False,
    centred: bool = True,
    norm_p: float | None = 1.0,
) -> Case:
    """16 experts, of which `here` are here; their width says in which way they are computed."""

    def run(version: Callable[..., Any], make: Maker) -> tuple[Tensor, ...]:
        router = make.normal(16, hidden, scale=hidden**-0.5)
        down: Tensor | Fp8Tensor = make.normal(here, 48, 1).expand(here, 48, width)
        if fp8:
            down = quantize_channels(down)
        x, before = make.normal(tokens, hidden, scale=3.0), make.normal(tokens, hidden)
        ids_room = torch.full((tokens, 4), -1, device=make.device)
        routed, stream = version(
            x, before, make.normal(hidden), 1e-5, router, 4, norm_p, down, ids_room, centred=centred
        )
        assert routed.topk_ids.data_ptr() == ids_room.data_ptr()
        values, scales = quantize_tokens(routed.x)
        if routed.quantized is not None:  # exactly what it would be later
            assert torch.equal(routed.quantized.values.float(), values.float())
            assert torch.equal(routed.quantized.scales, scales)
        if routed.grouping is not None:
            assert_groups(routed.grouping, routed.topk_ids)
        weights = routed.topk_weights
        if make.rounding == torch.float32:  # else among so many tokens some choose another expert
            weights = weights.new_zeros(tokens, 16).scatter(1, routed.topk_ids, weights)
        return routed.x, stream, weights

    name = f"norm_route-{tokens}x{hidden}-here-{here}-width-{width}-fp8-{fp8}-centred-{centred}"
    return Case(f"{name}-{norm_p}", norm_route, run)


def assert_groups(grouping: Grouping, topk_ids: Tensor) -> None:
    ids = topk_ids.flatten()
    pairs = ids.argsort(stable=True)
    assert torch.equal(grouping.pairs.long(), pairs)
    assert torch.equal(grouping.places.long(), pairs.argsort())
    counts = ids.bincount(minlength=len(grouping.offsets) - 1)
    assert torch.equal(grouping.offsets[1:].long(), counts.cumsum(0))
    assert grouping.offsets[0] == 0


def experts_case(
    tokens: int,
    experts: int,
    top_k: int,
    *,
    width: int = 40,
    elsewhere: int = 0,
    lies_transposed: bool = True,
    fp8: bool = False,
) -> Case:
    """The first `elsewhere` experts and as many last ones are not here: as in expert parallelism,
    some tokens have work for this rank and some have none."""

    def run(version: Callable[..., Any], make: Maker) -> tuple[Tensor, ...]:
        scores = torch.rand(tokens, experts + 2 * elsewhere, generator=make.generator)
        weights, ids = scores.topk(top_k)
        x = make.normal(tokens, 48)
        gate_up = make.normal(experts, 2 * width, 48, scale=0.2)
        down = make.normal(experts, width, 48, scale=0.2).transpose(1, 2)
        if not lies_transposed:
            down = down.contiguous()
        if elsewhere:
            x[(ids < elsewhere).all(-1) | (ids >= experts + elsewhere).all(-1)] = torch.nan
        held = [quantize_channels(part) if fp8 else part for part in (gate_up, down)]
        made = version(x, *held, make.cast(weights), ids.to(make.device) - elsewhere)
        return (made if isinstance(made, Tensor) else combine.reference(made),)

    name = f"fused_experts-{tokens}x{experts}-top{top_k}-width-{width}-elsewhere-{elsewhere}"
    name += f"-transposed-{lies_transposed}-fp8-{fp8}"
    return Case(name, fused_experts, run, fp8)


def quantize_case(tokens: int, width: int) -> Case:
    def run(version: Callable[..., Any], make: Maker) -> tuple[Tensor, ...]:
        sizes = torch.tensor([1.0, 0.0, 64.0, 2.0**-100]).repeat(tokens)[:tokens, None]
        x = make.normal(tokens, width) * make.cast(sizes)
        x[4:5, width // 2] = torch.nan
        values, scales = version(x)
        assert (values.dtype, scales.dtype) == (torch.float8_e4m3fn, torch.float32)
        return ((values.float() * scales[:, None]).to(x.dtype),)

    return Case(f"quantize_tokens-{tokens}x{width}", quantize_tokens, run, fp8=True)


def linear_case(tokens: int, inputs: int, outputs: int, *, fp8: bool, bias: bool = False) -> Case:
    def run(version: Callable[..., Any], make: Maker) -> tuple[Tensor, ...]:
        x, weight = make.normal(tokens, inputs), make.normal(outputs, inputs, scale=0.1)
        if tokens > 2:
            x[1] = 0.0
            x[2, 0] = torch.inf if fp8 else 1.0
        held = quantize_channels(weight) if fp8 else weight
        return (version(x, held, make.normal(outputs) if bias else None),)

    name = f"linear-{tokens}x{inputs}x{outputs}-fp8-{fp8}-bias-{bias}"
    return Case(name, linear, run, fp8)


CASES = [
    *(
        norm_case(op, tokens, hidden, residual=residual)
        for op in (rms_norm, layer_norm)
        for tokens, hidden in ((1, 576), (17, 80))
        for residual in (True, False)
    ),
    combine_case(1, 96, 2, placed=False),
    combine_case(7, 1100, 4, placed=True),
    *(
        experts_norm_case(op, tokens, hidden, placed=placed, residual=tokens > 1)
        for op in (rms_norm, layer_norm)
        for tokens, hidden, placed in ((1, 576, False), (5, 80, True), (9, 1100, False))
    ),
    *(
        norm_linear_case(*shape, fp8=fp8, **form)
        for fp8 in (False, True)
        for shape, form in (
            ((1, 96, 160), {"experts": True}),
            ((1, 45, 51), {"centred": False, "bias": True}),
            ((1, 576, 33), {"residual": False}),
            ((4, 96, 160), {"experts": True}),
            ((17, 45, 51), {"centred": False, "bias": True}),
            ((300, 96, 160), {"experts": True}),
        )
    ),
    silu_mul_case(1, 1536),
    silu_mul_case(33, 24),
    *(rope_case(index, clip) for index in range(len(LAYOUTS)) for clip in (None, 0.7)),
    *(attention_case(index) for index in range(len(LAYOUTS))),
    *(attention_linear_case(index, fp8=True, bias=index == 1) for index in (0, 1, 3, 6)),
    attention_linear_case(1, fp8=False),
    *(rotary_attention_case(index, None if index % 2 else 0.7) for index in range(len(LAYOUTS))),
    route_case(1, 16, 4, 1.0),
    route_case(40, 8, 2, None),
    route_case(40, 8, 2, 2.0),
    route_case(3, 16, 4, 1.0, hidden=6144),
    route_case(150, 16, 4, 1.0, hidden=3000),
    route_case(5, 64, 6, 1.0),
    norm_route_case(1, 96, fp8=True),
    norm_route_case(1, 48, width=40, fp8=True, centred=False),
    norm_route_case(3, 3000, fp8=True, norm_p=2.0),
    norm_route_case(3, 45, width=40),
    norm_route_case(16, 1100, norm_p=3.0),
    norm_route_case(32, 6144, fp8=True),
    norm_route_case(17, 96, here=4, fp8=True, norm_p=None),
    norm_route_case(128, 96, width=40),
    norm_route_case(150, 96, fp8=True),
    norm_route_case(600, 96, fp8=True),
    experts_case(1, 16, 4),
    experts_case(50, 8, 2),
    experts_case(3, 16, 4),
    experts_case(4, 4, 2, elsewhere=2),
    experts_case(50, 4, 2, elsewhere=2),
    experts_case(300, 16, 4),  # tiles of 64 rows, of which some have 32 and fewer
    *(experts_case(tokens, 16, 4, fp8=True) for tokens in (1, 3, 50, 300, 700)),
    *(experts_case(tokens, 4, 2, elsewhere=2, fp8=True) for tokens in (4, 50)),
    *(
        experts_case(700, 16, 4, width=176, elsewhere=elsewhere, **form)
        for elsewhere in (0, 3)
        for form in ({"lies_transposed": True}, {"lies_transposed": False}, {"fp8": True})
    ),
    *(quantize_case(tokens, width) for tokens, width in ((1, 48), (50, 6144), (9, 37))),
    *(linear_case(tokens, 96, 160, fp8=True) for tokens in (1, 2, 3, 40, 300)),
    linear_case(2, 96, 160, fp8=False, bias=True),
    linear_case(17, 45, 51, fp8=True, bias=True),
    linear_case(17, 45, 51, fp8=False, bias=True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_version_is_its_reference(case: Case, device: str, dtype: torch.dtype) -> None:
    def run(version: Callable[..., Any], dtype_held: torch.dtype, where: str) -> list[Tensor]:
        generator = torch.Generator().manual_seed(len(case.name))
        maker = Maker(dtype, dtype_held, torch.device(where), generator)
        return [x.cpu() for x in case.run(version, maker)]

    expected = run(case.op.reference, torch.float32, "cpu")
    versions: list[Callable[..., Any]] = [case.op]
    if device in case.op.invariant_versions:
        versions.append(case.op.invariant)
    if (device, dtype) != ("cpu", torch.float32):
        versions.append(case.op.reference)
    for version in versions:
        for got, wanted in zip(run(version, dtype, device), expected, strict=True):
            assert got.dtype == dtype
            assert got.shape == wanted.shape
            assert torch.equal(got.isnan(), wanted.isnan())  # caches: where nothing was written
            error = (got.float() - wanted).nan_to_num().norm() / wanted.nan_to_num().norm()
            allowed = TOLERANCE_FP8 if case.fp8 else TOLERANCE
            assert error <= allowed[dtype], f"{version}: {error:.2e}"


@pytest.mark.parametrize("tokens", [3, 32, 150])
@pytest.mark.parametrize("device", DEVICES)
def test_a_token_of_nan_is_routed_and_changes_no_other(device: str, tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    make = Maker(torch.bfloat16, torch.bfloat16, torch.device(device), generator)
    x, before = make.normal(tokens, 96), make.normal(tokens, 96)
    weight, router = make.normal(96), make.normal(16, 96)
    down = make.normal(16, 96, 2080)

    def routed(x: Tensor) -> tuple[Routed, Tensor]:
        return norm_route(x, before, weight, 1e-5, router, 4, 1.0, down, centred=True)

    expected, expected_stream = routed(x)
    x[1, 5] = torch.nan
    got, stream = routed(x)
    others = torch.arange(tokens, device=device) != 1
    assert torch.equal(stream[others], expected_stream[others])
    for name in ("x", "topk_weights", "topk_ids"):
        assert torch.equal(getattr(got, name)[others], getattr(expected, name)[others])
    assert got.topk_weights[1].isnan().all()
    assert len(set(got.topk_ids[1].tolist()) & set(range(16))) == 4
    if got.grouping is not None:
        assert_groups(got.grouping, got.topk_ids)
