"""`dropless study` from measuring to the page, on tiny shapes and two gloo ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dropless.cli.main import app

ALL_REDUCE = Path(__file__).parents[3] / "benchmarks/results/all_reduce.json"


def study(out: Path, *arguments: str, exit_code: int = 0) -> str:
    """What it says on stderr, save for processes of its own."""
    command = ["study", *arguments, "--tiny", "--out", str(out), "--all-reduce", str(ALL_REDUCE)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == exit_code, result.output
    return result.output


def document(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "data" / f"{name}.json").read_text())
    return found


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.slow
def test_a_slice_is_measured_once_and_drawn_the_same_each_time(tmp_path: Path) -> None:
    said = study(tmp_path, "serving", "draw", "--models", "dbrx", "--users", "1,3")
    assert "wrote" in said
    found = document(tmp_path, "serving-slice8-dbrx")
    assert found["complete"]
    assert found["users"] == [1, 3]
    measured = {(point["kind"], point.get("decodes")) for point in found["points"]}
    assert measured == {
        *((kind, 0) for kind in ("short", "prompt", "full")),
        *((kind, rows) for kind in ("decode", "short", "prompt") for rows in (1, 3)),
        ("closed loop", None),
    }
    assert found["points"][-1]["tpot"]["count"] == found["points"][-1]["answers"] >= 2
    page = (tmp_path / "README.md").read_text()
    assert "Not measured yet:** Llama2-70B here" in page
    assert "Not measured yet:** capacity" in page
    users = [line.split(" | ")[1] for line in page.splitlines() if line.startswith("| DBRX | ")]
    assert users == ["1", "3", "2"]  # the last is the loop that was really run
    drawn = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    assert {path.name for path in drawn} == {"README.md", "serving-slice8.png"}
    data = (tmp_path / "data" / "serving-slice8-dbrx.json").read_bytes()
    study(tmp_path, "serving", "draw", "--models", "dbrx", "--users", "3")
    assert data == (tmp_path / "data" / "serving-slice8-dbrx.json").read_bytes()
    assert drawn == {path: path.read_bytes() for path in tmp_path.glob("*.*")}


@pytest.mark.slow
def test_a_whole_model_on_two_ranks(tmp_path: Path) -> None:
    study(tmp_path, "serving", "--on", "whole", "--models", "dense-132b", "--users", "2")
    found = document(tmp_path, "serving-whole2-dense-132b")
    assert found["complete"]
    assert found["room"]["max_running_requests"] == 2
    study(tmp_path, "draw")
    page = (tmp_path / "README.md").read_text()
    assert "Whole models on 2 GPUs" in page
    assert "the cost of the sums" not in page


def test_layers_of_fixed_capacity_and_of_two_ranks(tmp_path: Path) -> None:
    study(tmp_path, "capacity", "parallel", "draw")
    for point in document(tmp_path, "capacity")["points"]:
        assert point["us"] > 0
        if point["factor"] == 2 and point["exponent"] == 0:
            assert point["wasted"] >= 0.5
        if point["factor"] == 1 and point["exponent"] == 1:
            assert point["dropped"] == pytest.approx(point["wasted"])  # as many places as pairs
            assert point["dropped"] > 0.2
    ranks = document(tmp_path, "parallel")
    assert ranks["complete"]
    assert [(point["tokens"], point["share"]) for point in ranks["points"]] == [
        (tokens, share) for tokens in (1, 16) for share in (0.5, 0.625, 0.75, 1.0)
    ]
    page = (tmp_path / "README.md").read_text()
    assert "| 16 | 62.5% | " in page
    assert {path.name for path in tmp_path.glob("*.png")} == {"capacity.png", "parallel.png"}


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    said = study(tmp_path, "serving", "capacity", "parallel", "--seconds", "0")
    assert said.count("no time left") == 5  # three models and two layers
    assert not (tmp_path / "data").exists()
    study(tmp_path, "capacity")
    path = tmp_path / "data" / "capacity.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "points": whole["points"][:7], "complete": False}))
    study(tmp_path, "capacity")
    again = json.loads(path.read_text())
    assert again["points"][:7] == whole["points"][:7]
    places = [
        [(p["tokens"], p["exponent"], p["factor"]) for p in d["points"]] for d in (whole, again)
    ]
    assert places[0] == places[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "a part is 'speed'; it must be serving or capacity or parallel or draw"),
        (["serving", "--models", "grok"], "--models is 'grok'"),
        (["serving", "--users", "1,x"], "--users is '1,x'"),
        (["serving", "--users", "0"], "--users is '0'"),
    ],
)
def test_wrong_settings(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in study(tmp_path, *arguments, exit_code=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure")
def test_what_a_machine_without_gpus_cannot_measure(tmp_path: Path) -> None:
    command = ["study", "--out", str(tmp_path), "--models", "dbrx"]
    refused = CliRunner().invoke(app, [*command, "parallel"])
    assert refused.exit_code == 1
    assert "this needs 2 GPUs and PyTorch sees 0; --tiny tries" in refused.output
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0
    assert said.output.count("is left out: this needs") == 3
    assert "Not measured yet:** serving" in (tmp_path / "README.md").read_text()


def test_tiny_figures_do_not_mix_with_real_ones() -> None:
    result = CliRunner().invoke(app, ["study", "--tiny", "capacity"])
    assert result.exit_code == 1
    assert "give --out FOLDER" in result.output
