"""A device without memory: a start that fails says so, a step is computed again in smaller ones."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from dropless import LLM, SamplingParams
from dropless.checkpoints.open import open_checkpoint
from dropless.checkpoints.writer import write_tiny_dbrx
from dropless.engine import executor
from dropless.engine.config import EngineConfig
from dropless.engine.executor import Executor
from dropless.engine.memory import plan_memory
from dropless.engine.messages import EngineRequest, TokenDelta
from dropless.engine.out_of_memory import ran_out_of_memory
from dropless.engine.row_table import StepArrays
from dropless.engine.runner import Runner
from dropless.errors import MemoryPlanError, OutOfMemoryError

from . import builders
from .simulated_device import SimulatedDevice, make_engine, solo_output

OF_PYTORCH = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
OF_CUDA = RuntimeError("CUDA error: out of memory")
NO_MEMORY = [
    OF_PYTORCH,
    OF_CUDA,
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=repr)
def test_lack_of_memory_is_told_from_other_errors(error: Exception) -> None:
    assert ran_out_of_memory(error)
    wrapped = ValueError("something failed")
    assert not ran_out_of_memory(wrapped)
    wrapped.__cause__ = error
    assert ran_out_of_memory(wrapped)


def test_so_is_what_pytorch_says_of_a_cpu() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert ran_out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2) @ torch.empty(3)
    assert not ran_out_of_memory(caught.value)


# The start


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("error", [OF_PYTORCH, OF_CUDA], ids=["PyTorch", "CUDA"])
def test_a_start_that_lacks_memory_says_what_it_needs_and_what_is_free(
    tiny_config: EngineConfig, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("dropless.engine.load.load_model", raising(error))
    expected = r"plan of \d+\.\d\d GiB .* has \d[\d,.]+ GiB free.* lower memory_fraction"
    with pytest.raises(MemoryPlanError, match=expected):
        start(tiny_config)


def test_other_errors_of_a_start_keep_their_words(
    tiny_config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dropless.engine.load.load_model", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        start(tiny_config)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_lacks_memory_at_the_start_ends_all(
    tiny_config: EngineConfig, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    make_builders_importable(monkeypatch)
    if rank == 0:
        monkeypatch.setattr(executor, "load_runner", raising(OF_PYTORCH))
    else:
        monkeypatch.setattr(executor, "follow_rank_0", builders.lack_memory_at_the_start)
    with pytest.raises(MemoryPlanError, match="memory ran out while the model was loaded"):
        start(tiny_config, tensor_parallel_size=2)
    assert not builders.rank_processes()


def test_a_gpu_that_cannot_even_be_asked_is_named(
    tiny_config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", raising(OF_CUDA))
    config = msgspec.structs.replace(tiny_config, device="auto")
    checkpoint = open_checkpoint(config.model_path, config.weights, config.seed)
    with pytest.raises(MemoryPlanError, match="GPU 0 has no memory left"):
        plan_memory(config, checkpoint)


def start(config: EngineConfig, **settings: Any) -> LLM:
    fields = {name: getattr(config, name) for name in config.__struct_fields__}
    del fields["model_id"]
    return LLM(fields.pop("model_path"), **{**fields, **settings})


def make_builders_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)


# Steps, on a simulated device


def request(name: str, num_prompt: int, output: int = 12) -> EngineRequest:
    prompt = [5 + (i + len(name)) % 50 for i in range(num_prompt)]
    return EngineRequest(name, prompt, SamplingParams(max_tokens=output, seed=1, ignore_eos=True))


def run_out(engine: Any) -> dict[str, list[TokenDelta]]:
    deltas: dict[str, list[TokenDelta]] = {}
    for _ in range(1000):
        if not engine.has_work():
            return deltas
        for delta in engine.step():
            deltas.setdefault(delta.request_id, []).append(delta)
    raise AssertionError("no end")


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_smaller_steps_give_the_same_answers(overlaps: bool, tokens: int) -> None:
    engine, device = make_engine(overlaps=overlaps, max_model_len=128)
    requests = [request("a", 30), request("bb", 5), request("ccc", 17)]
    for each in requests:
        engine.add_request(each)
    for _ in range(3):
        engine.step()
    device.memory_tokens = tokens
    deltas = run_out(engine)
    for each in requests:
        expected, reason, _ = solo_output(each, 1, 128)
        assert answer(deltas[each.request_id]) == expected[-len(answer(deltas[each.request_id])) :]
        assert deltas[each.request_id][-1].finish_reason == reason
    assert max(sum(step.num_tokens) for step in device.steps[-10:]) <= tokens
    engine.check_integrity()


def answer(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.new_token_ids]


@pytest.mark.parametrize("overlaps", [False, True])
def test_without_memory_for_one_token_the_requests_of_the_step_fail_and_later_ones_run(
    overlaps: bool,
) -> None:
    engine, device = make_engine(overlaps=overlaps)
    for name in ("a", "bb"):
        engine.add_request(request(name, 10))
    device.memory_tokens = 0
    deltas = run_out(engine)
    for name in ("a", "bb"):
        [last] = deltas[name]
        assert (last.finish_reason, last.error_kind) == ("error", OutOfMemoryError.__name__)
        assert "no memory left" in (last.error or "")
    assert engine.stats().finished_requests == 2
    engine.check_integrity()
    device.memory_tokens = device.budget
    later = request("ccc", 20)
    engine.add_request(later)
    assert answer(run_out(engine)["ccc"]) == solo_output(later, 1, 64)[0]


def test_only_as_many_run_as_a_smaller_step_has_tokens_for() -> None:
    engine, device = make_engine()
    requests = [request("x" * i, 4, 30) for i in range(1, 5)]
    for each in requests:
        engine.add_request(each)
    device.memory_tokens = 2
    engine.step()
    while engine.has_work():
        assert engine.stats().running <= 2
        engine.step()
    expected = sum(len(solo_output(each, 1, 64)[0]) for each in requests)
    assert engine.stats().generated_tokens == expected


def test_steps_grow_again_when_memory_is_back() -> None:
    engine, device = make_engine(prefix_caching=False)
    device.memory_tokens = 8
    engine.add_request(request("a", 16))
    run_out(engine)
    assert max(sum(step.num_tokens) for step in device.steps[1:]) == 8
    device.memory_tokens = device.budget
    while max(sum(step.num_tokens) for step in device.steps[1:]) < 16:
        assert len(device.steps) < 400
        engine.add_request(request("a", 16))
        run_out(engine)


def test_other_errors_of_a_step_end_the_engine_as_before() -> None:
    engine, device = make_engine()
    engine.add_request(request("a", 4))
    device.fail_next = RuntimeError("a kernel failed")
    with pytest.raises(RuntimeError, match="a kernel failed"):
        engine.step()
    assert isinstance(device, SimulatedDevice)


# Steps, with a model

PROMPTS = [[11, 45, 97, 3, 200, 154, 9], [7] * 40, list(range(5, 120))]
MIXED = [
    SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True),
    SamplingParams(seed=5, max_tokens=24, top_p=0.9, ignore_eos=True, prompt_logprobs=1),
    SamplingParams(seed=6, max_tokens=24, repetition_penalty=1.3, ignore_eos=True, logprobs=2),
]


@pytest.mark.parametrize("overlaps", [False, True])
def test_a_step_that_fails_in_the_middle_leaves_nothing_wrong_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlaps: bool
) -> None:
    """In turn before the model, behind it, and in the sampler."""
    monkeypatch.setattr(Executor, "overlaps", overlaps)
    write_tiny_dbrx(tmp_path)
    with LLM(tmp_path, device="cpu", threads=1, step_token_budget=48) as llm:
        expected = llm.generate(PROMPTS, MIXED)
        calls = {"compute": 0, "sample": 0}
        compute, sample = Runner._compute, Runner._sample

        def failing_compute(self: Runner, arrays: StepArrays) -> Any:
            calls["compute"] += 1
            if calls["compute"] in (3, 4, 20):
                raise OF_PYTORCH
            computed = compute(self, arrays)
            if calls["compute"] in (8, 30):
                raise OF_CUDA
            return computed

        def failing_sample(self: Runner, *arguments: Any) -> Any:
            calls["sample"] += 1
            if calls["sample"] in (2, 15):
                raise OF_PYTORCH
            return sample(self, *arguments)

        monkeypatch.setattr(Runner, "_compute", failing_compute)
        monkeypatch.setattr(Runner, "_sample", failing_sample)
        found = llm.generate(PROMPTS, MIXED)
        llm.engine.check_integrity()
    assert calls["compute"] > 30
    assert len({tuple(each.token_ids) for each in expected}) == 3, "prompts must matter"
    for mine, its in zip(found, expected, strict=True):
        assert mine.token_ids == its.token_ids
        assert mine.finish_reason == its.finish_reason
        assert len(mine.prompt_logprobs or []) == len(its.prompt_logprobs or [])
        assert len(mine.logprobs or []) == len(its.logprobs or [])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_lacks_memory_in_a_step_is_named_and_ends_all(
    tiny_config: EngineConfig, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    make_builders_importable(monkeypatch)
    if rank == 1:
        monkeypatch.setattr(executor, "follow_rank_0", builders.lack_memory_in_a_step)
    with start(tiny_config, tensor_parallel_size=2) as llm:
        if rank == 0:
            monkeypatch.setattr(Runner, "_sample", raising(OF_PYTORCH))
        words = rf"rank {rank} ran out of memory in a step.* GiB free"
        with pytest.raises(OutOfMemoryError, match=words) as caught:
            llm.generate(PROMPTS, MIXED)
        assert re.search(words, str(caught.value))
        assert not builders.rank_processes()
