"""Counts of the experts that tokens go to, held to the router's own choices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dropless import LLM, SamplingParams
from dropless.checkpoints.open import open_checkpoint
from dropless.checkpoints.writer import write_tiny_dbrx
from dropless.engine.client import AsyncEngineClient
from dropless.engine.config import EngineConfig
from dropless.engine.executor import Executor
from dropless.engine.expert_load import ExpertLoad
from dropless.engine.runner import Runner
from dropless.layers.moe import MoE
from dropless.models.decoder import CausalLM
from dropless.models.registry import load_model
from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.moe import ExpertOutputs, Routed, route
from dropless.parallel.group import SOLO

from .traffic import collect, make_request

PROMPTS = [[11, 45, 97, 3, 200, 154, 9], list(range(5, 90)), [3, 1, 4, 1, 5]]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "threads": 1,
    "dtype": "float32",
    "quantization": "none",
    "step_token_budget": 32,
    "max_running_requests": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dbrx")
    write_tiny_dbrx(folder)
    return folder


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder, **SETTINGS) as llm:
        yield llm


def runner_of(llm: LLM) -> Runner:
    executor = llm.engine._executor
    assert isinstance(executor, Executor)
    return executor._runner


def load_of(llm: LLM, *, interval_s: float) -> ExpertLoad:
    load = runner_of(llm)._expert_load
    assert load is not None
    load._interval_s = interval_s
    return load


def record_choices(model: CausalLM) -> Tensor:
    """[layers, experts], counted by the reference router from what goes into each layer."""
    counts = torch.zeros(len(model.blocks), model.config.num_experts, dtype=torch.int64)

    def watched(layer: int, moe: MoE) -> None:
        real = moe._experts

        def recorded(
            routed: Routed, gate_up: Tensor | Fp8Tensor, down: Tensor | Fp8Tensor
        ) -> Tensor | ExpertOutputs:
            chosen = route.reference(routed.x, moe._router, moe._top_k, moe._norm_p)[1]
            for expert in chosen.flatten().tolist():
                counts[layer, expert] += 1
            return real(routed, gate_up, down)

        moe._experts = recorded

    for layer, block in enumerate(model.blocks):
        assert isinstance(block.ffn, MoE)
        watched(layer, block.ffn)
    return counts


def test_counts_are_those_of_the_router(llm: LLM) -> None:
    load_of(llm, interval_s=0.0)
    expected = record_choices(runner_of(llm)._model)
    results = llm.generate(PROMPTS, GREEDY)
    counts = llm.engine.expert_counts()
    assert counts == expected.tolist()
    computed = sum(len(r.prompt_token_ids) + len(r.token_ids) - 1 for r in results)
    top_k = llm.ready.experts_per_token
    assert [sum(row) for row in counts] == [computed * top_k] * len(counts)
    assert len({tuple(row) for row in counts}) == len(counts), "layers differ"


def test_one_step_in_each_interval_is_looked_at(llm: LLM) -> None:
    load = load_of(llm, interval_s=1e6)
    llm.generate(PROMPTS[0], GREEDY)
    first = llm.engine.expert_counts()
    assert sum(first[0]) == len(PROMPTS[0]) * llm.ready.experts_per_token
    llm.generate(PROMPTS[0], GREEDY)
    assert llm.engine.expert_counts() is first
    load._next_s = time.monotonic()
    llm.generate(PROMPTS[2], GREEDY)
    assert sum(llm.engine.expert_counts()[0]) > sum(first[0])


def test_the_deterministic_form_is_counted_too(folder: Path) -> None:
    with LLM(folder, **SETTINGS, deterministic=True) as llm:
        load_of(llm, interval_s=0.0)
        expected = record_choices(runner_of(llm)._model)
        llm.generate(PROMPTS, GREEDY)
        assert llm.engine.expert_counts() == expected.tolist()


def test_smaller_steps_leave_what_larger_ones_wrote_behind_uncounted(folder: Path) -> None:
    model = load_model(
        open_checkpoint(folder, "checkpoint", 0),
        dtype=torch.float32,
        device=torch.device("cpu"),
        group=SOLO,
    )
    load = ExpertLoad(model, 7, torch.device("cpu"), interval_s=0.0)
    moes = [block.ffn for block in model.blocks]
    hidden = torch.randn(7, model.config.hidden_size)
    for count in (7, 2):
        for moe in moes:
            moe(hidden[:count], hidden[:count])
        load.note_step(count)
    assert [sum(row) for row in load.counts] == [9 * model.config.top_k] * len(moes)


def test_counts_come_from_the_engine_process(folder: Path) -> None:
    async def counts_of(config: EngineConfig) -> tuple[Any, Any]:
        client = AsyncEngineClient(config)
        before = await client.expert_counts()
        await client.start()
        try:
            await collect(client, make_request(4))
            return before, await client.expert_counts()
        finally:
            await client.stop()

    before, counts = asyncio.run(counts_of(EngineConfig(model_path=folder, **SETTINGS)))
    assert before is None
    assert sum(counts[0]) > 0


def test_a_dense_model_has_no_counts(tiny_config: EngineConfig) -> None:
    with LLM(tiny_config.model_path, weights="random", device="cpu", threads=1) as llm:
        llm.generate([5, 6, 7], GREEDY)
        assert llm.engine.expert_counts() == []
        assert llm.ready.experts_per_token == 1
