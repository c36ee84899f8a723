"""The mathematics that the study rests on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dropless.bench.metrics import Distribution
from dropless.bench.study.closed_loop import Window
from dropless.bench.study.fixed_capacity import Dispatch, capacity_of, fixed_capacity_experts
from dropless.bench.study.models import config_of
from dropless.bench.study.routing import shifted_choices, zipf_choices
from dropless.bench.study.sums import SumCost
from dropless.bench.study.utilisation import gpu_named, mbu, mfu
from dropless.models.registry import parse_config
from dropless.ops.moe import fused_experts

ALL_REDUCE = Path(__file__).parents[3] / "benchmarks/results/all_reduce.json"


@settings(deadline=None)  # the first call is slow
@given(st.integers(1, 40), st.sampled_from([0.0, 0.5, 1.5]), st.integers(1, 12))
def test_fixed_capacity_computes_what_it_keeps(tokens: int, exponent: float, places: int) -> None:
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x, gate_up, down = normal(tokens, 16), normal(5, 24, 16), normal(5, 16, 12)
    ids, weights = zipf_choices(tokens, 5, 2, exponent), normal(tokens, 2)
    kept = [[False] * 2 for _ in range(tokens)]
    taken = [0] * 5
    for t in range(tokens):  # in the order of tokens, as long as an expert has places
        for j in range(2):
            expert = int(ids[t, j])
            kept[t][j] = taken[expert] < places
            taken[expert] += 1
    assert Dispatch.of(ids, 5, places).kept.view(ids.shape).tolist() == kept
    kept_weights = torch.where(torch.tensor(kept), weights, 0.0)
    expected = fused_experts.reference(x, gate_up, down, kept_weights, ids)
    found = fixed_capacity_experts(x, gate_up, down, weights, ids, places)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_capacity_is_a_share_rounded_up() -> None:
    assert capacity_of(1.25, 64, 16, 4) == 20
    assert capacity_of(1.0, 5, 16, 4) == 2
    assert capacity_of(2.0, 1, 16, 4) == 1


def test_made_up_routing_is_as_skewed_as_asked() -> None:
    for share in (0.0, 0.5, 0.75, 1.0):
        ids = shifted_choices(4000, 16, 4, share, draw=0)
        assert float((ids < 8).float().mean()) == pytest.approx(share, abs=0.02)
        assert (ids.sort(1).values.diff(dim=1) > 0).all()
        assert torch.bincount(ids.flatten(), minlength=16)[:8].float().std() < 150
        assert not torch.equal(ids, shifted_choices(4000, 16, 4, share, draw=1))
    even, skewed = (
        torch.bincount(zipf_choices(4000, 16, 4, exponent).flatten(), minlength=16)
        for exponent in (0.0, 1.0)
    )
    assert even.max() < 1.15 * even.min()
    assert skewed[0] > 4 * skewed[-1]


def test_sums_cost_what_was_measured_and_more_among_more_ranks() -> None:
    rows = json.loads(ALL_REDUCE.read_text())["rows"]
    two, eight = SumCost.read(ALL_REDUCE, 2), SumCost.read(ALL_REDUCE, 8)
    for row in rows:
        measured = min(row["one_shot_in_a_step_us"], row["nccl_in_a_step_us"])
        assert two.microseconds(1024 * row["kib"]) == pytest.approx(measured)
        assert eight.microseconds(1024 * row["kib"]) > measured
    sizes = [2**power for power in range(10, 28)]
    costs = [eight.microseconds(size) for size in sizes]
    assert costs == sorted(costs)
    assert eight.microseconds(100e6) == pytest.approx(2 * 7 / 8 * 100e6 / eight.bytes_per_us)
    assert eight.step_seconds(1, 6144, 40) == pytest.approx(80e-6 * eight.microseconds(12288))


def test_utilisation_by_hand() -> None:
    gpu = gpu_named("NVIDIA H100 80GB HBM3")
    assert gpu is not None
    assert gpu_named("another") is None
    config = parse_config(config_of("dense-132b", tiny=False))
    latency = Distribution.of_seconds([0.02])
    assert latency is not None
    window = Window(1, 10.0, 500, 2, 50.0, 450.0, latency, latency)
    per_rank = 131.6e9 / 8  # save for the embedding, of which one row is read
    assert mbu(window, config, 8, 2128, gpu) == pytest.approx(2 * per_rank / 0.02 / 3e12, rel=0.02)
    assert mfu(window, config, 8, 2000, 2128, gpu) == pytest.approx(
        2 * per_rank * 450 / 779e12, rel=0.02
    )
