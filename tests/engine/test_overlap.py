"""The real runner, launched early as on a GPU: the tokens, log probabilities and errors that it
gives when each step waits for the last."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from dropless.checkpoints.open import open_checkpoint
from dropless.engine.config import EngineConfig
from dropless.engine.constraints import Constraints
from dropless.engine.engine import Engine
from dropless.engine.executor import Executor
from dropless.engine.load import load_runner
from dropless.engine.memory import plan_memory
from dropless.engine.messages import EngineRequest, TokenDelta
from dropless.engine.sampling_params import GrammarSpec, SamplingParams
from dropless.engine.step import LaunchedStep, StepInput
from dropless.models.decoder import CausalLM
from dropless.parallel.group import SOLO
from dropless.text.tokenizer import ByteTokenizer

from .conftest import TINY_LLAMA

BYTES_PER_BLOCK = 2 * 2 * 2 * 16 * 16 * 4  # layers, K and V, heads, head_dim, tokens, float32
NUM_BLOCKS = 16  # less than all requests take: some are preempted
POISON = 99  # a token whose embedding is not a number


class Early(Executor):
    """Lets the engine go on as a GPU does."""

    overlaps = True
    num_launched = 0

    def launch(self, step: StepInput) -> LaunchedStep:
        self.num_launched += 1
        return super().launch(step)


def make_engine(folder: Path, kind: type[Executor]) -> tuple[Engine, Executor]:
    (folder / "config.json").write_text(json.dumps(TINY_LLAMA | {"tie_word_embeddings": False}))
    config = EngineConfig(
        model_path=folder,
        weights="random",
        device="cpu",
        dtype="float32",
        threads=1,
        step_token_budget=48,
        kv_cache_bytes=NUM_BLOCKS * BYTES_PER_BLOCK,
    )
    checkpoint = open_checkpoint(folder, "random")
    plan = plan_memory(config, checkpoint)
    tokenizer = ByteTokenizer()
    constraints = Constraints(tokenizer, TINY_LLAMA["vocab_size"], tokenizer.eos_token_ids)
    runner = load_runner(config, checkpoint, plan, SOLO, constraints, lambda *_: None)
    poison(runner._model)
    executor = kind(runner)
    engine = Engine(
        executor,
        constraints,
        num_blocks=plan.num_blocks,
        block_size=config.block_size,
        max_model_len=plan.max_model_len,
        max_running_requests=8,
        max_waiting_requests=100,
        step_token_budget=plan.step_token_budget,
        prefix_caching=True,
    )
    return engine, executor


def poison(model: CausalLM) -> None:
    with torch.inference_mode():
        model.embedding.table[POISON] = math.nan


def requests() -> list[EngineRequest]:
    """Every parameter that changes how a token comes about, and every way to end."""
    greedy = {"temperature": 0.0}
    params: list[dict[str, Any]] = [
        greedy,
        {**greedy, "max_tokens": 1},
        {**greedy, "logprobs": 2, "prompt_logprobs": 1},
        {"temperature": 0.7, "top_p": 0.8},
        {"top_k": 5, "min_p": 0.1, "logprobs": 0},
        {"ignore_eos": False, "min_tokens": 9, "stop_token_ids": tuple(range(0, 250, 3))},
        {"logit_bias": {7: 5.0, 8: -100.0}},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.5},
        {"grammar": GrammarSpec("regex", "[a-f]{3,9}"), "logprobs": 1, "max_tokens": 5},
        {"stop_token_ids": tuple(range(20, 200))},
    ]
    made = []
    for i, own in enumerate(params):
        prompt = [(7 * i + 3 * j) % 90 + 3 for j in range(1 if i == 3 else 10 + 7 * i)]
        own = {"seed": i, "max_tokens": 60, "ignore_eos": "grammar" not in own, **own}
        made.append(EngineRequest(str(i), prompt, SamplingParams(**own)))
    poisoned = [3, 4, 5, POISON]
    made.append(EngineRequest("poisoned", poisoned, SamplingParams(max_tokens=5, seed=1)))
    made.append(msgspec.structs.replace(made[0], request_id="again"))
    return made


def run(engine: Engine, requests: list[EngineRequest]) -> dict[str, TokenDelta]:
    """All deltas of each request as one."""
    for request in requests:
        engine.add_request(request)
    found: dict[str, TokenDelta] = {}
    while engine.has_work():
        for delta in engine.step():
            delta.scheduled_time, delta.num_cached_tokens = 0.0, 0
            if delta.request_id in found:
                found[delta.request_id].extend(delta)
            else:
                found[delta.request_id] = delta
    return found


def outcome(delta: TokenDelta) -> tuple[object, ...]:
    return delta.new_token_ids, delta.finish_reason, delta.stop_token_id, delta.error


def scores(delta: TokenDelta) -> list[float]:
    """Every log probability in it, in order."""
    entries = [*(delta.prompt_logprobs or []), *(delta.logprobs or [])]
    return [
        value
        for entry in entries
        if entry is not None
        for value in (entry.logprob, *(p for _, p in entry.top))
    ]


@pytest.mark.parametrize("together", [True, False], ids=["together", "one-by-one"])
def test_steps_launched_early_give_what_waiting_ones_give(tmp_path: Path, together: bool) -> None:
    waiting, _ = make_engine(tmp_path, Executor)
    early, executor = make_engine(tmp_path, Early)
    batches = [requests()] if together else [[request] for request in requests()]
    expected: dict[str, TokenDelta] = {}
    found: dict[str, TokenDelta] = {}
    for batch in batches:
        expected |= run(waiting, batch)
        found |= run(early, batch)
    assert "not finite (nan)" in (expected["poisoned"].error or "")
    assert found.keys() == expected.keys()
    for name, delta in found.items():
        assert outcome(delta) == outcome(expected[name])
        assert scores(delta) == pytest.approx(scores(expected[name]), abs=1e-4)
    assert early.stats().generated_tokens == waiting.stats().generated_tokens
    assert isinstance(executor, Early)
    assert executor.num_launched == early.stats().steps
    if together:
        assert early.stats().preemptions > 0
