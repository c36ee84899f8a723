"""A GPU that other programs fill: before the start, while a model loads, and under load."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dropless import LLM, SamplingParams
from dropless.checkpoints.writer import write_tiny_dbrx
from dropless.engine import executor
from dropless.engine.messages import EngineRequest
from dropless.engine.runner import Runner
from dropless.errors import MemoryPlanError, OutOfMemoryError
from tests.server.tiny_model import write_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MIB = 2**20
SETTINGS: dict[str, Any] = {
    "device": "cuda",
    "dtype": "float32",
    "quantization": "none",
    "kv_cache_bytes": 256 * MIB,
    "max_running_requests": 8,
    "step_token_budget": 8192,
    "prefix_caching": False,  # the same prompts again are the same steps again
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dbrx")
    write_tiny_dbrx(
        folder,
        d_model=512,
        n_heads=8,
        kv_n_heads=2,
        ffn_hidden_size=512,
        vocab_size=16_000,
        max_seq_len=8192,
    )
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dropless.engine.load.warm_up", lambda *_, **__: None)  # a minute of tiles
        llm = LLM(folder, **SETTINGS)
    with llm:
        yield llm


def take_all_but(num_bytes: int) -> list[torch.Tensor]:
    """Tensors that leave so much of the GPU's memory, or a little more."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    taken = []
    size = torch.cuda.mem_get_info()[0] - num_bytes
    while size >= 2 * MIB:
        try:
            taken.append(torch.empty(size // MIB * MIB, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
        size = min(size, torch.cuda.mem_get_info()[0] - num_bytes)
    return taken


def free(taken: list[torch.Tensor]) -> None:
    taken.clear()
    torch.cuda.empty_cache()


def test_a_server_that_finds_no_memory_ends_with_one_line(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    options = ["--port", "0", "--weights", "random", "--device", "cuda"]
    command = [sys.executable, "-m", "dropless.cli.main", "serve", str(tmp_path), *options]
    taken = take_all_but(0)
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        free(taken)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    words = " ".join(result.stderr.split())  # the line may be wrapped
    assert re.search(r"no memory left|To make it fit|memory ran out", words), words


def test_a_model_that_finds_no_memory_after_the_plan_says_what_is_free(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[torch.Tensor] = []
    load_runner = executor.load_runner

    def load_too_late(*arguments: Any) -> Runner:
        taken.extend(take_all_but(4 * MIB))
        return load_runner(*arguments)

    monkeypatch.setattr(executor, "load_runner", load_too_late)
    expected = r"GPU 0 has 0\.\d\d of [\d.]+ GiB free; this process holds"
    try:
        with pytest.raises(MemoryPlanError, match=expected):
            LLM(folder, **SETTINGS)
    finally:
        free(taken)


def prompt(number: int, length: int) -> list[int]:
    return [(31 * i * i + 17 * i + 101 * number) % 16_000 for i in range(length)]


def greedy(max_tokens: int, **fields: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, **fields)


def test_a_step_that_lacks_memory_is_computed_in_smaller_ones(
    llm: LLM, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [prompt(0, 6000), prompt(1, 50), prompt(2, 1500)]
    params = [greedy(8), greedy(40), greedy(20)]
    expected = [result.token_ids for result in llm.generate(prompts, params)]
    taken = take_all_but(24 * MIB)  # of one activation of the first step, 12 MiB fit twice
    try:
        found = [result.token_ids for result in llm.generate(prompts, params)]
    finally:
        free(taken)
    assert "lacked memory: steps of up to" in caplog.text
    assert found == expected


def test_memory_that_is_taken_while_requests_run_costs_no_more_than_them(llm: LLM) -> None:
    prompts = {"plain": prompt(3, 300), "long": prompt(4, 3000), "scored": prompt(5, 3000)}
    params = {"plain": greedy(100), "long": greedy(20), "scored": greedy(4, prompt_logprobs=1)}
    expected = {name: llm.generate(prompts[name], params[name])[0] for name in prompts}
    found: dict[str, list[int]] = {name: [] for name in prompts}
    failed = set()

    def step() -> None:
        for delta in llm.engine.step():
            found[delta.request_id] += delta.new_token_ids
            if delta.finish_reason == "error":
                assert delta.error_kind == OutOfMemoryError.__name__
                failed.add(delta.request_id)

    llm.engine.add_request(EngineRequest("plain", prompts["plain"], params["plain"]))
    for _ in range(10):
        step()
    taken = take_all_but(0)
    try:
        for name in ("long", "scored"):
            llm.engine.add_request(EngineRequest(name, prompts[name], params[name]))
        while llm.engine.has_work():
            step()
    finally:
        free(taken)
    llm.engine.check_integrity()
    for name, tokens in found.items():
        wanted = expected[name].token_ids
        assert tokens == (wanted[: len(tokens)] if name in failed else wanted)
    for name in prompts:
        again = llm.generate(prompts[name], params[name])[0]
        assert (again.token_ids, again.error) == (expected[name].token_ids, None)
