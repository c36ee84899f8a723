"""The references against formulas written independently of them, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dropless.ops.activation import silu_mul
from dropless.ops.attention import paged_attention
from dropless.ops.norm import layer_norm, rms_norm
from dropless.ops.rope import rope_and_cache
from tests.ops.paged import LAYOUTS, Layout, batch_of, empty_cache, filled_cache, slots_of, tables


def error(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_is_softmax_over_the_whole_sequence(layout: Layout) -> None:
    generator = torch.Generator().manual_seed(1)
    block_tables = tables(layout, generator)
    heads = (layout.num_kv_heads, layout.head_dim)
    keys, values = (
        [torch.randn(length, *heads, generator=generator) for _, length in layout.sequences]
        for _ in "kv"
    )
    q = torch.randn(layout.num_tokens, layout.num_heads, layout.head_dim, generator=generator)
    got = paged_attention.reference(
        q,
        filled_cache(layout, block_tables, keys),
        filled_cache(layout, block_tables, values),
        batch_of(layout, block_tables, torch.device("cpu")),
        0.3,
    )
    group = layout.num_heads // layout.num_kv_heads
    token = 0
    for i, (query_len, length) in enumerate(layout.sequences):
        for position in range(length - query_len, length):
            for head in range(layout.num_heads):
                past_k = keys[i][: position + 1, head // group].double()
                past_v = values[i][: position + 1, head // group].double()
                weights = (past_k @ q[token, head].double() * 0.3).softmax(0)
                assert error(got[token, head], weights @ past_v) < 5e-6
            token += 1


@pytest.mark.parametrize("clip", [None, 0.5])
def test_rotation_is_a_product_of_complex_numbers(clip: float | None) -> None:
    layout = LAYOUTS[3]
    generator = torch.Generator().manual_seed(2)
    block_tables = tables(layout, generator)
    batch = batch_of(layout, block_tables, torch.device("cpu"))
    half = layout.head_dim // 2
    angles = torch.outer(torch.arange(64.0).double(), 10000.0 ** -(torch.arange(half) / half))
    width = layout.num_heads + 2 * layout.num_kv_heads
    qkv = torch.randn(layout.num_tokens, width, layout.head_dim, generator=generator)
    positions = torch.cat([torch.arange(n - m, n) for m, n in layout.sequences])
    caches = [empty_cache(layout, block_tables) for _ in "kv"]
    cos, sin = angles.cos(), angles.sin()
    table = torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)], dim=1)
    queries = rope_and_cache.reference(
        qkv.flatten(1),
        table[positions].float(),
        *caches,
        batch.slot_mapping,
        num_heads=layout.num_heads,
        num_kv_heads=layout.num_kv_heads,
        clip=clip,
    )
    wide = qkv.double() if clip is None else qkv.double().clamp(-clip, clip)
    turned = torch.complex(wide[..., :half], wide[..., half:])
    turned = turned * torch.polar(torch.ones(half).double(), angles[positions])[:, None]
    rotated = torch.cat([turned.real, turned.imag], -1)
    slots = torch.cat(
        [
            slots_of(layout, block_tables[i], torch.arange(n - m, n))
            for i, (m, n) in enumerate(layout.sequences)
        ]
    )
    keys, values = (cache.flatten(0, 1) for cache in caches)
    assert error(queries, rotated[:, : layout.num_heads]) < 1e-6
    assert error(keys[slots], rotated[:, layout.num_heads : -layout.num_kv_heads]) < 1e-6
    assert error(values[slots], wide[:, -layout.num_kv_heads :]) < 1e-6
    for cache in (keys, values):
        assert cache.isnan().all(-1).all(-1).sum() == len(cache) - layout.num_tokens


def test_norms_and_activation() -> None:
    torch.manual_seed(3)
    x, residual, weight = torch.randn(7, 96), torch.randn(7, 96), torch.randn(96)
    summed = (x + residual).double()
    normed, new_residual = rms_norm.reference(x, residual, weight, 1e-3)
    expected = summed / (summed.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * weight
    assert error(normed, expected) < 1e-6
    assert torch.equal(new_residual, x + residual)
    normed, new_residual = layer_norm.reference(x, residual, weight, 1e-3)
    assert error(normed, F.layer_norm(summed, (96,), weight.double(), None, 1e-3)) < 1e-6
    assert torch.equal(new_residual, x + residual)
    gate, up = x[:, :48].double(), x[:, 48:].double()
    assert error(silu_mul.reference(x), gate / (1 + torch.exp(-gate)) * up) < 1e-6
    assert rms_norm.reference(x, None, weight, 1e-3)[1] is x
