"""The same engine on a GPU: equal to its CPU float32 run, and at DBRX's real width."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from dropless import LLM, SamplingParams
from dropless.checkpoints.resolve import resolve
from dropless.checkpoints.writer import write_tiny_dbrx
from dropless.engine.config import EngineConfig, Quantization
from dropless.engine.executor import Executor
from dropless.engine.runner import Runner
from dropless.engine.step import LaunchedStep, StepInput

from .mixes import Loaded, alone, make_requests, together

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PROMPTS = [
    [11, 45, 97, 3, 200, 154, 9],
    [7] * 40,
    list(range(5, 120)),
    [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5],
]


@pytest.fixture(autouse=True)
def _untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring tiles would take a minute for each shape that no table has; any tile will do."""
    monkeypatch.setattr("dropless.ops.triton.tuning.tune", lambda *_, **__: None)


def greedy(folder: Path, device: str, dtype: str, tokens: int) -> list[list[int]]:
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    with LLM(
        str(folder), device=device, dtype=dtype, quantization="none", step_token_budget=48
    ) as llm:
        return [result.token_ids for result in llm.generate(PROMPTS, params)]


def test_greedy_on_the_gpu_equals_greedy_on_the_cpu(tmp_path: Path) -> None:
    write_tiny_dbrx(tmp_path)
    expected = greedy(tmp_path, "cpu", "float32", 32)
    assert greedy(tmp_path, "cuda", "float32", 32) == expected
    in_bfloat16 = greedy(tmp_path, "cuda", "bfloat16", 4)
    assert in_bfloat16 == [tokens[:4] for tokens in expected]


def test_launching_a_step_waits_for_nothing_and_changes_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = Executor.launch

    def launch_without_waiting(self: Executor, step: StepInput) -> LaunchedStep:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(self, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    write_tiny_dbrx(tmp_path)
    greedy_params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    mixed = [
        SamplingParams(seed=1, max_tokens=20, top_p=0.9, stop_token_ids=tuple(range(0, 300, 7))),
        SamplingParams(seed=2, max_tokens=9, top_k=20, min_p=0.02, logprobs=2, prompt_logprobs=1),
        SamplingParams(seed=3, max_tokens=30, logit_bias={5: 3.0}, min_tokens=10),
        SamplingParams(seed=4, max_tokens=30, presence_penalty=0.5, repetition_penalty=1.2),
    ]
    batches = [[greedy_params] * 4, mixed, [*mixed[:3], greedy_params]]

    def run() -> list[list[int]]:
        with LLM(str(tmp_path), device="cuda", dtype="float32", step_token_budget=48) as llm:
            return [
                result.token_ids for params in batches for result in llm.generate(PROMPTS, params)
            ]

    with monkeypatch.context() as patch:
        patch.setattr(Executor, "overlaps", False)
        expected = run()
    monkeypatch.setattr(Executor, "launch", launch_without_waiting)
    assert run() == expected


def test_no_request_waits_for_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of all lengths start while others decode, in steps with and without graphs."""
    write_tiny_dbrx(tmp_path)
    monkeypatch.setattr("dropless.engine.step_graphs.MOST_TOKENS", 64)
    monkeypatch.setattr("dropless.engine.warm_up.MOST_TOKENS", 64)
    compiled: list[str] = []
    prompts = [[(7 * i + j * j) % 500 for j in range(1 + 61 * i % 200)] for i in range(60)]
    params = [SamplingParams(temperature=0.0, max_tokens=1 + i % 23) for i in range(60)]
    with LLM(
        str(tmp_path),
        device="cuda",
        dtype="bfloat16",
        quantization="none",
        step_token_budget=512,
        max_running_requests=40,
    ) as llm:
        runtime = pytest.importorskip("triton").knobs.runtime
        monkeypatch.setattr(
            runtime, "jit_post_compile_hook", lambda fn, **_: compiled.append(fn.name)
        )
        llm.generate(prompts, params)
    assert compiled == []


@pytest.mark.parametrize("prompt", PROMPTS[:2], ids=["padded", "longer"])
def test_experts_are_counted_inside_graphs(tmp_path: Path, prompt: list[int]) -> None:
    """The first step is looked at, and no other; what pads it is not counted."""
    write_tiny_dbrx(tmp_path)
    counts = []
    for device in ("cpu", "cuda"):
        settings = {"dtype": "float32", "quantization": "none", "step_token_budget": 48}
        with LLM(str(tmp_path), device=device, **settings) as llm:
            llm.engine._executor._runner._expert_load._interval_s = 1e6
            llm.generate(prompt, SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True))
            counts.append(llm.engine.expert_counts())
    assert counts[1] == counts[0]
    assert {sum(row) for row in counts[0]} == {len(prompt) * 2}


@pytest.mark.parametrize("budget", [48, 700])
def test_graphs_change_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    """Long and short prompts that start while others decode, with prompts scored and sampled."""
    write_tiny_dbrx(tmp_path)
    prompts = [[(7 * i + j * j) % 500 for j in range(3 + 37 * i % 150)] for i in range(12)]
    params = [
        SamplingParams(
            temperature=0.0 if i % 3 else 0.9,
            seed=i,
            max_tokens=4 + 3 * i,
            ignore_eos=True,
            prompt_logprobs=1 if i % 4 == 1 else None,
        )
        for i in range(12)
    ]

    def run() -> list[list[int]]:
        with LLM(
            str(tmp_path),
            device="cuda",
            dtype="float32",
            step_token_budget=budget,
            max_running_requests=5,
        ) as llm:
            return [result.token_ids for result in llm.generate(prompts, params)]

    in_graphs = run()
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "capture_graphs", lambda *_: None)
        assert run() == in_graphs


def test_four_layers_of_dbrx_generate_in_bfloat16(tmp_path: Path) -> None:
    config = json.loads((resolve("dbrx", allow_shapes=True) / "config.json").read_text())
    config["n_layers"] = 4
    (tmp_path / "config.json").write_text(json.dumps(config))
    prompts = [[(7 * i + 13 * j) % 100_000 for i in range(300 + j)] for j in range(8)]
    greedy_params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    sampled_params = SamplingParams(temperature=0.8, top_p=0.9, seed=5, max_tokens=24, logprobs=2)
    with LLM(str(tmp_path), weights="random", device="cuda", max_model_len=4096) as llm:
        first = llm.generate(prompts, greedy_params)
        sampled = llm.generate(prompts[:2], sampled_params)
    assert all(len(result.token_ids) == 24 for result in first)
    assert len({tuple(result.token_ids) for result in first}) > 1, "prompts must matter"
    for result in sampled:
        assert result.logprobs is not None
        assert all(entry.logprob <= 0.0 for entry in result.logprobs)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_in_deterministic_mode_hundreds_of_requests_get_what_each_gets_alone(
    quantization: Quantization, tmp_path: Path
) -> None:
    config = json.loads((resolve("dbrx", allow_shapes=True) / "config.json").read_text())
    config["n_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    num_blocks = 2000
    bytes_per_block = 2 * 2 * 8 * 128 * 16 * 2  # layers, K and V, heads, head_dim, tokens, bfloat16
    loaded = Loaded.load(
        EngineConfig(
            model_path=tmp_path,
            weights="random",
            device="cuda",
            quantization=quantization,
            deterministic=True,
            max_model_len=4096,
            max_running_requests=128,
            kv_cache_bytes=num_blocks * bytes_per_block,
        )
    )
    choice = random.Random(1)
    requests = make_requests(choice, 300, vocab_size=100_000, longest=900, tokens=64)
    expected = {request.request_id: alone(loaded, request, num_blocks) for request in requests}
    preemptions = hits = 0
    for blocks, budget, rows, prefix_caching in [
        (2000, 8192, 128, True),
        (2000, 100, 40, False),
        (70, 1000, 128, True),
        (2000, 700, 7, True),
    ]:
        engine = loaded.engine(
            num_blocks=blocks, budget=budget, rows=rows, prefix_caching=prefix_caching
        )
        mix = choice.sample(requests, len(requests))
        answers, stats = together(engine, mix, choice)
        assert answers == expected
        preemptions += stats.preemptions
        hits += stats.prefix_hit_tokens
    assert preemptions > 0
    assert hits > 0
