"""Routing and experts against plain float64, transformers, and awkward routings."""

from __future__ import annotations

from importlib.metadata import version

import pytest
import torch
from torch import Tensor

from dropless.ops.fp8 import quantize_channels, quantize_tokens
from dropless.ops.moe import fused_experts, route


def error(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


def one_by_one(
    x: Tensor, gate_up: Tensor, down: Tensor, topk_weights: Tensor, topk_ids: Tensor
) -> Tensor:
    """Each token through each of its experts in turn, in float64."""
    out = torch.zeros_like(x, dtype=torch.float64)
    for t, token in enumerate(x.double()):
        for weight, expert in zip(topk_weights[t].double(), topk_ids[t], strict=True):
            gate, up = (gate_up[expert].double() @ token).chunk(2)
            out[t] += weight * (down[expert].double() @ (gate * torch.sigmoid(gate) * up))
    return out


def weights_of(experts: int, hidden: int, width: int) -> tuple[Tensor, Tensor]:
    gate_up = torch.randn(experts, 2 * width, hidden) / hidden**0.5
    return gate_up, (torch.randn(experts, width, hidden) / width**0.5).transpose(1, 2)


@pytest.mark.parametrize("norm_p", [None, 1.0, 2.0])
def test_route_is_softmax_then_top_k(norm_p: float | None) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(30, 64), torch.randn(16, 64)
    probabilities = (x.double() @ weight.double().T).softmax(-1)
    expected, order = probabilities.sort(-1, descending=True)
    expected, order = expected[:, :4], order[:, :4]
    if norm_p is not None:
        expected = expected / expected.pow(norm_p).sum(-1, keepdim=True).pow(1 / norm_p)
    weights, ids = route.reference(x, weight, 4, norm_p)
    assert ids.dtype == torch.int64
    assert torch.equal(ids, order)
    assert error(weights, expected) < 1e-5


@pytest.mark.parametrize("better", [0, 1])
def test_a_bfloat16_router_tells_experts_apart_that_a_bfloat16_softmax_would_not(
    better: int,
) -> None:
    scores = torch.zeros(4, dtype=torch.bfloat16)
    scores[1 - better], scores[better] = 0.498046875, 0.5  # neighbours in bfloat16
    rounded = scores.softmax(-1)
    assert rounded[0] == rounded[1]
    x, weight = torch.tensor([[1.0, 0.0]]).bfloat16(), torch.zeros(4, 2).bfloat16()
    weight[:, 0] = scores
    topk_weights, topk_ids = route.reference(x, weight, 1, None)
    assert topk_ids.tolist() == [[better]]
    assert topk_weights.dtype == torch.bfloat16


@pytest.mark.skipif(
    not version("transformers").startswith("4.57."), reason="compares with transformers 4.57's DBRX"
)
def test_experts_are_those_of_transformers() -> None:
    from transformers.models.dbrx.modeling_dbrx import DbrxExperts, DbrxRouter

    torch.manual_seed(1)
    hidden, width, experts = 64, 48, 8
    theirs = DbrxExperts(hidden, width, experts, {"name": "silu"}).eval()
    router = DbrxRouter(hidden, experts, 2, None, 1.0).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(20, hidden)
    with torch.no_grad():
        w1, v1, w2 = (
            parameter.view(experts, width, hidden)
            for parameter in (theirs.mlp.w1, theirs.mlp.v1, theirs.mlp.w2)
        )
        their_weights, *chosen = router(x[None])
        expected = theirs(x[None], their_weights, *chosen)[0].double()
        topk_weights, topk_ids = route.reference(x, router.layer.weight, 2, 1.0)
        gate_up = torch.cat([w1, v1], dim=1)
        got = fused_experts.reference(x, gate_up, w2.transpose(1, 2), topk_weights, topk_ids)
    assert torch.equal(topk_ids, chosen[1])
    assert error(got, expected) < 1e-6


def test_experts_are_the_sum_over_each_tokens_choices() -> None:
    torch.manual_seed(2)
    x = torch.randn(25, 32)
    weights, ids = torch.rand(25, 8).topk(3)
    gate_up, down = weights_of(8, 32, 24)
    got = fused_experts.reference(x, gate_up, down, weights, ids)
    assert error(got, one_by_one(x, gate_up, down, weights, ids)) < 1e-6
    contiguous = fused_experts.reference(x, gate_up, down.contiguous(), weights, ids)
    assert error(contiguous, got.double()) < 1e-6


@pytest.mark.parametrize("expert", [0, 5])
def test_no_token_is_dropped_when_all_choose_one_expert(expert: int) -> None:
    torch.manual_seed(3)
    x = torch.randn(200, 32)
    gate_up, down = weights_of(6, 32, 24)
    gate_up[(expert + 1) % 6] = float("nan")  # an expert that nobody chose is not computed with
    weights, ids = torch.rand(200, 1) + 0.5, torch.full((200, 1), expert)
    got = fused_experts.reference(x, gate_up, down, weights, ids)
    assert (got.abs().sum(-1) > 0).all()
    assert error(got, one_by_one(x, gate_up, down, weights, ids)) < 1e-6


@pytest.mark.parametrize("first", [0, 2, 6])
@pytest.mark.parametrize("quantized", [False, True], ids=["float32", "fp8"])
def test_experts_elsewhere_contribute_nothing(first: int, quantized: bool) -> None:
    """Ranks that hold two experts each, over a routing that leaves one without work."""
    torch.manual_seed(4)
    x = torch.randn(25, 32)
    gate_up, down = weights_of(8, 32, 24)
    weights, ids = torch.rand(25, 6).topk(3)
    x[7] = float("nan")
    ids[7] = torch.tensor([0, 2, 5])
    own = (ids >= first) & (ids < first + 2)
    parts = gate_up[first : first + 2], down[first : first + 2]
    held = [quantize_channels(part) if quantized else part for part in parts]
    got = fused_experts.reference(x, *held, weights, ids - first)
    assert got[7].isnan().all() == own[7].any()
    expected = one_by_one(x, gate_up, down, weights * own, ids)
    assert (got[~own.any(-1)] == 0).all()
    if first < 6:
        finite = [t for t in range(25) if t != 7]
        assert error(got[finite], expected[finite]) < (0.08 if quantized else 1e-6)


def test_experts_in_8_bits_quantise_the_tokens_and_what_is_activated() -> None:
    torch.manual_seed(5)
    x = torch.randn(25, 32)
    gate_up, down = weights_of(8, 32, 24)
    weights, ids = torch.rand(25, 8).topk(3)
    held = quantize_channels(gate_up), quantize_channels(down)
    got = fused_experts.reference(x, *held, weights, ids)
    wide = [part.float().double() for part in held]
    expected = torch.zeros(25, 32, dtype=torch.float64)
    for t in range(25):
        for weight, expert in zip(weights[t], ids[t], strict=True):
            gate, up = (wide[0][expert] @ rounded(x[t])).chunk(2)
            made = wide[1][expert] @ rounded(gate * torch.sigmoid(gate) * up)
            expected[t] += weight * made
    assert error(got, expected) < 2e-3  # a number between two of 8 bits may fall to either
    assert 0.02 < error(got, one_by_one(x, gate_up, down, weights, ids)) < 0.08  # measured: 0.053


def rounded(row: Tensor) -> Tensor:
    values, scales = quantize_tokens(row[None].float())
    return (values.double() * scales.double()[:, None])[0]
