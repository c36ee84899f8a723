"""`dropless plan`: what it says of memory is what the engine does, and what it says when it cannot
answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dropless.bench.gpus import Precision, find_gpu
from dropless.checkpoints.open import open_checkpoint
from dropless.checkpoints.resolve import resolve
from dropless.checkpoints.writer import write_tiny_dbrx
from dropless.cli.main import app
from dropless.engine.config import EngineConfig
from dropless.engine.memory import plan_memory

run = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"}).invoke


def planned(*arguments: str, exit_code: int = 0) -> dict[str, Any]:
    result = run(app, ["plan", *arguments, "--json"])
    assert result.exit_code == exit_code, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_dbrx_on_eight_gpus() -> None:
    document = planned("dbrx", "--gpu", "H100", "--count", "8")
    assert document["fits"]
    assert document["parameters"] == 131_596_523_520
    assert document["alternatives"] == []
    layouts = [(found["quantization"], found["expert_parallel"]) for found in document["layouts"]]
    assert layouts == [("none", False), ("none", True), ("fp8", False), ("fp8", True)]
    for layout in document["layouts"]:
        users = [row["batch"] for row in layout["predictions"]]
        assert users == [1, 8, 32, 128, 256]
        for row in layout["predictions"]:
            assert row["limit_ms"] < row["tpot_ms"]
            assert row["decode_tokens_per_s"] == pytest.approx(1e3 * row["batch"] / row["tpot_ms"])
            assert row["total_tokens_per_s"] < row["decode_tokens_per_s"]
    # Both keep every weight but the router and the norms on one GPU of eight, and the embedding.
    tensor, expert = (
        found["memory_of_each_gpu"]["weight_bytes"] for found in document["layouts"][:2]
    )
    assert tensor == expert == pytest.approx((263.2e9 - 1.23e9) / 8 + 1.23e9, rel=0.001)


@pytest.mark.parametrize(
    ("quantization", "parallel"), [("none", "tensor"), ("none", "expert"), ("fp8", "tensor")]
)
def test_it_says_of_memory_what_the_engine_does(
    monkeypatch: pytest.MonkeyPatch, quantization: Precision, parallel: str
) -> None:
    document = planned(
        "dbrx", "--gpu", "H100", "--count", "4", "--memory-fraction", "0.95",
        "--max-model-len", "4096", "--max-running-requests", "300", "--step-token-budget", "4096",
        "--quantization", quantization, "--parallel", parallel,
    )  # fmt: skip
    (layout,) = document["layouts"]
    found = layout["memory_of_each_gpu"]
    free = find_gpu("H100").memory_bytes
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 2 * free))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A GPU")
    config = EngineConfig(
        model_path=resolve("dbrx", allow_shapes=True),
        tensor_parallel_size=4,
        expert_parallel=parallel == "expert",
        quantization=quantization,
        memory_fraction=0.95,
        max_model_len=4096,
        max_running_requests=300,
        step_token_budget=4096,
    )
    engine = plan_memory(config, open_checkpoint(config.model_path, "random"))
    assert found == {name: getattr(engine, name) for name in found}


def test_what_does_not_fit_comes_with_what_would() -> None:
    arguments = ("dbrx", "--gpu", "H200", "--count", "1,2", "--quantization", "none")
    arguments += ("--memory-fraction", "0.88")
    document = planned(*arguments, "--parallel", "tensor", exit_code=1)
    assert not document["fits"]
    assert all("GiB for weights" in layout["refusal"] for layout in document["layouts"])
    would = [
        (found["count"], found["quantization"], found["change"], found["fits"])
        for found in document["alternatives"]
    ]
    assert would == [
        (4, "none", None, True),
        (2, "none", "memory_fraction 0.98", True),
        (2, "fp8", None, True),
        (1, "fp8", "memory_fraction 0.98", True),
    ]
    shown = run(app, ["plan", *arguments])
    assert shown.exit_code == 1
    assert shown.output.count("does not fit") == 3  # EP2 as well
    assert "what would fit" in shown.output


def test_a_cache_without_room_for_one_request_is_no_fit() -> None:
    document = planned(
        "dbrx", "--gpu", "H100", "--count", "4", "--quantization", "none", "--parallel", "tensor",
        "--memory-gib", "70.6", "--memory-fraction", "0.9", "--input-len", "8000", exit_code=1,
    )  # fmt: skip
    (layout,) = document["layouts"]
    assert layout["memory_of_each_gpu"]["kv_cache_bytes"] > 0
    assert "one request has 8128" in layout["refusal"]


def test_batches_that_the_cache_cannot_hold_are_left_out_and_said() -> None:
    document = planned(
        "dbrx", "--gpu", "H100", "--count", "2", "--quantization", "fp8", "--parallel", "tensor",
        "--memory-fraction", "0.9",
    )  # fmt: skip
    (layout,) = document["layouts"]
    assert 32 < layout["users"] < 128
    assert [row["batch"] for row in layout["predictions"]] == [1, 8, 32]
    assert any(f"holds {layout['users']} users" in note for note in document["notes"])


def test_predictions_are_of_the_steps_that_memory_leaves_room_for() -> None:
    arguments = ["dbrx", "--gpu", "H200", "--count", "1", "--quantization", "fp8"]
    found = planned(*arguments)["layouts"][0]
    assert found["memory_of_each_gpu"]["step_token_budget"] == 4096
    asked = planned(*arguments, "--step-token-budget", "4096")["layouts"][0]
    times = [[row["ttft_ms"] for row in each["predictions"]] for each in (found, asked)]
    assert times[0] == times[1]
    larger = planned(*arguments, "--step-token-budget", "8192")["layouts"][0]
    assert larger["users"] < found["users"]


def test_the_tables_show_measured_beside_predicted(tmp_path: Path) -> None:
    config = json.loads((resolve("dbrx", allow_shapes=True) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_layers": 8}))
    arguments = ["plan", str(tmp_path), "--gpu", "H100", "--quantization", "none"]
    shown = run(app, [*arguments, "--batch", "1,8,64,256"])
    assert shown.exit_code == 0, shown.output
    assert "measured TPOT" in shown.output
    document = planned(*arguments[1:], "--batch", "1,8,64,256")
    (layout,) = document["layouts"]
    for row in layout["predictions"]:
        assert row["tpot_ms"] == pytest.approx(row["measured_tpot_ms"], rel=0.15)
    assert len(document["measured"]) >= 4


def test_figures_that_nobody_measured_are_named() -> None:
    arguments = ("dbrx", "--gpu", "H200", "--count", "2", "--quantization", "fp8")
    notes = "\n".join(planned(*arguments, "--parallel", "tensor")["notes"])
    assert ("small all-reduce" in notes) == (find_gpu("H200").all_reduce_us is None)
    assert ("The fp8 rate of H200" in notes) == (find_gpu("H200").fp8_tflops is None)
    given = ("--all-reduce-us", "9", "--link-gb-s", "300", "--fp8-tflops", "1300")
    assert "not known" not in "\n".join(planned(*arguments, *given)["notes"])


def test_a_model_that_is_here_and_a_gpu_that_is_described(tmp_path: Path) -> None:
    write_tiny_dbrx(tmp_path)
    gpu = ("--gpu", "mine", "--memory-gib", "1", "--bandwidth-tb-s", "0.3", "--tflops", "20")
    traffic = ("--input-len", "32", "--output-len", "8", "--batch", "1,2")
    document = planned(str(tmp_path), *gpu, *traffic)
    assert document["fits"]
    assert [layout["quantization"] for layout in document["layouts"]] == ["none"]
    assert document["measured"] == []


@pytest.mark.parametrize(("suffix", "counts"), [("png", "4,8"), ("svg", "1")])
def test_a_picture_is_drawn(tmp_path: Path, suffix: str, counts: str) -> None:
    """Also of what does not fit."""
    picture = tmp_path / f"plan.{suffix}"
    options = ["--count", counts, "--quantization", "none", "--plot", str(picture)]
    run(app, ["plan", "dbrx", "--gpu", "H100", *options])
    assert picture.stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dbrx", "--gpu", "H100", "--count", "3"], "8 key and value heads"),
        (["dbrx", "--gpu", "H100", "--count", "1,x"], "--count is '1,x'"),
        (["dbrx", "--gpu", "H100", "--batch", "0"], "--batch is '0'"),
        (["dbrx", "--gpu", "H100", "--batch", "512"], "raise --max-running-requests"),
        (["dbrx", "--gpu", "H100", "--quantization", "int4"], "must be none or fp8"),
        (["dbrx", "--gpu", "H100", "--parallel", "data"], "must be tensor or expert"),
        (["dbrx", "--gpu", "H100", "--input-len", "40000"], "has 32768 at most"),
        (["dbrx", "--gpu", "H300"], "known are H100, H200. Did you mean H"),
        (["dbrxx", "--gpu", "H100"], "Did you mean dbrx"),
        (["llama2-70b", "--gpu", "H100", "--count", "8", "--parallel", "expert"], "has none"),
        (["smollm2-135m", "--gpu", "H100", "--plot", "no/such.png"], "cannot write"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str) -> None:
    result = run(app, ["plan", *arguments])
    assert result.exit_code == 1
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_command_as_a_process() -> None:
    command = [sys.executable, "-m", "dropless.cli.main", "plan", "smollm2-135m", "--gpu", "H100"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "smollm2-135m, 135 M parameters, on H100" in done.stdout
