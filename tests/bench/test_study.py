"""`dropless study` on tiny shapes, through the real command, and the mathematics it rests on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from dropless.bench.metrics import Distribution
from dropless.bench.study.closed_loop import Window
from dropless.bench.study.fixed_capacity import Dispatch, capacity_of, fixed_capacity_experts
from dropless.bench.study.models import config_of
from dropless.bench.study.routing import shifted_choices, zipf_choices
from dropless.bench.study.sums import SumCost
from dropless.bench.study.utilisation import gpu_named, mbu, mfu
from dropless.cli.main import app
from dropless.models.registry import parse_config
from dropless.ops.moe import fused_experts

ALL_REDUCE = Path(__file__).parents[2] / "benchmarks/results/all_reduce.json"
SERVING = (
    "--part", "dbrx-dense", "--input-len", "24", "--output-len", "6", "--user-every", "0.02",
    "--window", "0.1", "--all-reduce", str(ALL_REDUCE),
)  # fmt: skip


def study(out: Path, *arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, ["study", "--tiny", "--out", str(out), *arguments])
    assert result.exit_code == exit_code, result.output
    return result.output


def documents(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((out / "data").iterdir())]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_users_of_two_models_then_more_users_of_one(tmp_path: Path) -> None:
    study(tmp_path, *SERVING, "--models", "dbrx,dense-132b", "--users", "1,3")
    for document in documents(tmp_path):
        assert [point["users"] for point in document["points"]] == [1, 3]
        for point in document["points"]:
            answers = point["output_tokens_per_s"] * point["seconds"] / 6
            assert abs(answers - point["answers"]) <= point["users"]  # of those cut by the window
            prompts = point["total_tokens_per_s"] - point["output_tokens_per_s"]
            assert prompts == pytest.approx(4 * point["output_tokens_per_s"], rel=0.6)
            assert point["tpot"]["count"] == point["ttft"]["count"] == point["answers"]
            assert point["sums_ms_a_step"] > 0
    page = (tmp_path / "README.md").read_text()
    assert "Not measured yet:** Llama2-70B" in page
    assert "--part capacity" in page
    assert "| 3 | " in page
    study(tmp_path, *SERVING, "--models", "dbrx", "--users", "2")
    page = (tmp_path / "README.md").read_text()
    users = [line.split(" | ")[1] for line in page.splitlines() if line.startswith("| DBRX | ")]
    assert users == ["1", "2", "3"]
    drawn = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    CliRunner().invoke(app, ["study", "--draw", "--out", str(tmp_path)])
    assert drawn == {path: path.read_bytes() for path in tmp_path.glob("*.*")}


def test_layers_of_fixed_capacity_and_of_two_ranks(tmp_path: Path) -> None:
    study(tmp_path, "--part", "capacity", "--part", "parallel")
    fixed, ranks = documents(tmp_path)
    for row in fixed["rows"]:
        assert row["us"] > 0
        if row["factor"] == 2 and row["exponent"] == 0:
            assert row["wasted"] >= 0.5
        if row["factor"] == 1 and row["exponent"] == 1:
            assert row["dropped"] == pytest.approx(row["wasted"])  # as many places as pairs
            assert row["dropped"] > 0.2
    assert {(row["tokens"], row["share"]) for row in ranks["rows"]} == {
        (tokens, share) for tokens in (1, 16) for share in (0.5, 0.625, 0.75, 1.0)
    }
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "parallel.md").write_text("Because.")
    CliRunner().invoke(app, ["study", "--draw", "--out", str(tmp_path)])
    assert "**Why.** Because." in (tmp_path / "README.md").read_text()


def test_time_that_is_up_is_said_and_nothing_is_kept(tmp_path: Path) -> None:
    said = study(tmp_path, *SERVING, "--models", "dbrx", "--minutes", "0")
    assert "no time left" in said
    assert not (tmp_path / "data").exists()
    assert "Not measured yet" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "speed"], "--part is 'speed'; it must be dbrx-dense or capacity or parallel"),
        (["--part", "capacity", "--draw"], "give either --part NAME"),
        (["--part", "dbrx-dense", "--all-reduce", "none.json"], "run benchmarks/all_reduce.py"),
        (["--part", "dbrx-dense", "--users", "1,x"], "--users is '1,x'"),
    ],
)
def test_wrong_settings(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in study(tmp_path, *arguments, exit_code=1)


@given(st.integers(1, 40), st.sampled_from([0.0, 0.5, 1.5]), st.integers(1, 12))
def test_fixed_capacity_computes_what_it_keeps(tokens: int, exponent: float, places: int) -> None:
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x, gate_up, down = normal(tokens, 16), normal(5, 24, 16), normal(5, 16, 12)
    ids, weights = zipf_choices(tokens, 5, 2, exponent), normal(tokens, 2)
    dispatch = Dispatch.of(ids, 5, places)
    counts = torch.bincount(ids[dispatch.kept.view(ids.shape)], minlength=5)
    expected_counts = torch.bincount(ids.flatten(), minlength=5).clamp(max=places)
    assert torch.equal(counts, expected_counts)  # an expert drops only when it is full
    kept_weights = torch.where(dispatch.kept.view(ids.shape), weights, 0.0)
    expected = fused_experts.reference(x, gate_up, down, kept_weights, ids)
    found = fixed_capacity_experts(x, gate_up, down, weights, ids, places)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_capacity_is_a_share_rounded_up() -> None:
    assert capacity_of(1.25, 64, 16, 4) == 20
    assert capacity_of(1.0, 5, 16, 4) == 2
    assert capacity_of(2.0, 1, 16, 4) == 1


def test_made_up_routing_is_as_skewed_as_asked() -> None:
    for share in (0.0, 0.5, 0.75, 1.0):
        ids = shifted_choices(4000, 16, 4, share)
        assert float((ids < 8).float().mean()) == pytest.approx(share, abs=0.02)
        assert (ids.sort(1).values.diff(dim=1) > 0).all()
        assert torch.bincount(ids.flatten(), minlength=16)[:8].float().std() < 150
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
    config = parse_config(config_of("dense-132b", tiny=False))
    latency = Distribution.of_seconds([0.02])
    window = Window(1, 10.0, 500, 2, 50.0, 450.0, latency, latency)
    per_rank = 131.6e9 / 8  # save for the embedding, of which one row is read
    assert mbu(window, config, 8, 2128, gpu) == pytest.approx(2 * per_rank / 0.02 / 3e12, rel=0.02)
    assert mfu(window, config, 8, 2000, 2128, gpu) == pytest.approx(
        2 * per_rank * 450 / 779e12, rel=0.02
    )
