"""Tensor parallelism through the real engine: the tokens of one rank, and no rank left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dropless import LLM, SamplingParams
from dropless.checkpoints.open import open_checkpoint
from dropless.checkpoints.writer import write_tiny_dbrx
from dropless.engine import executor
from dropless.engine.config import EngineConfig
from dropless.engine.constraints import Constraints
from dropless.engine.memory import plan_memory
from dropless.engine.results import GenerationResult
from dropless.errors import CheckpointError, EngineError, SettingsError

from .conftest import TINY_LLAMA

PROMPTS = [
    [11, 45, 97, 3, 200, 154, 9],
    [7] * 40,
    list(range(5, 120)),
    [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5],
]
GREEDY = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)
BYTES_PER_BLOCK = 2 * 2 * 2 * 16 * 16 * 4  # layers, K and V, heads, head_dim, tokens, float32
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "threads": 1,
    "dtype": "float32",
    "step_token_budget": 48,
    "kv_cache_bytes": 16 * BYTES_PER_BLOCK,  # less than these prompts take: some are preempted
    "max_running_requests": 8,
}


@dataclasses.dataclass
class Pair:
    """The same model on one rank and on two."""

    alone: LLM
    on_two: LLM
    rank_1: int  # the process that `on_two` has started

    def close(self) -> None:
        self.alone.close()
        self.on_two.close()


def make_pair(folder: Path, **settings: Any) -> Pair:
    settings = {**SETTINGS, **settings}
    before = children()
    alone, on_two = LLM(folder, **settings), LLM(folder, tensor_parallel_size=2, **settings)
    (rank_1,) = children() - before
    return Pair(alone, on_two, rank_1)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pair]]:
    """Two models at once: executors of one process do not collide. Where there are two ranks, steps
    are launched before the last one's tokens are known, as on GPUs."""
    llama, dbrx = tmp_path_factory.mktemp("llama"), tmp_path_factory.mktemp("dbrx")
    (llama / "config.json").write_text(json.dumps(TINY_LLAMA))
    write_tiny_dbrx(dbrx)
    made = {
        "llama": make_pair(llama, weights="random"),
        "dbrx": make_pair(dbrx, quantization="none"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor.ParallelExecutor, "overlaps", True)
        yield made
    for pair in made.values():
        pair.close()


def tokens(results: list[GenerationResult]) -> list[list[int]]:
    return [result.token_ids for result in results]


def children() -> set[int]:
    """Processes of ranks that this process has started and that still run."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, _, rest = stat.read_text().partition(" ")
            command = (stat.parent / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(rest.rpartition(")")[2].split()[1]) == os.getpid() and b"rank_main" in command:
            found.add(int(pid))
    return found


def generate_without_end(llm: LLM) -> None:
    while True:
        llm.generate(PROMPTS[0], GREEDY)


@pytest.mark.parametrize("family", ["llama", "dbrx"])
def test_two_ranks_give_the_tokens_of_one(pairs: dict[str, Pair], family: str) -> None:
    pair = pairs[family]
    expected = tokens(pair.alone.generate(PROMPTS, GREEDY))
    assert tokens(pair.on_two.generate(PROMPTS, GREEDY)) == expected
    assert len({tuple(ids) for ids in expected}) == len(PROMPTS), "prompts must matter"
    assert pair.on_two.engine.stats().preemptions > 0
    again = pair.on_two.generate(PROMPTS[::-1], GREEDY)  # rows are used again, prefixes found
    assert tokens(again) == expected[::-1]


def test_two_ranks_sample_and_score_as_one(pairs: dict[str, Pair]) -> None:
    pair = pairs["dbrx"]
    params = [
        SamplingParams(seed=5, max_tokens=12, ignore_eos=True, prompt_logprobs=2, logprobs=1),
        SamplingParams(seed=6, max_tokens=3, min_tokens=3, repetition_penalty=1.3),
        msgspec.structs.replace(GREEDY, prompt_logprobs=0, max_tokens=4),
        SamplingParams(seed=7, top_p=0.8, max_tokens=20, ignore_eos=True),
    ]
    expected = pair.alone.generate(PROMPTS, params)
    found = pair.on_two.generate(PROMPTS, params)
    assert tokens(found) == tokens(expected)
    for mine, its in zip(found, expected, strict=True):
        assert (mine.prompt_logprobs is None) == (its.prompt_logprobs is None)
        for ours, theirs in zip(mine.prompt_logprobs or [], its.prompt_logprobs or [], strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                assert ours.token_id == theirs.token_id
                assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


def test_heads_that_do_not_divide_are_refused_before_anything_starts(tmp_path: Path) -> None:
    write_tiny_dbrx(tmp_path)
    with pytest.raises(SettingsError, match=r"key and value heads: 2 .* tensor_parallel_size to"):
        LLM(tmp_path, tensor_parallel_size=4, **SETTINGS)


def test_a_rank_that_cannot_load_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 finds no files any more while rank 0 would read for minutes."""

    def read_slowly(*arguments: Any) -> None:
        progress = arguments[-1]
        while True:
            progress("loading weights", 0.0)
            time.sleep(0.01)

    folder = tmp_path / "model"
    write_tiny_dbrx(folder)
    config = EngineConfig(model_path=folder, tensor_parallel_size=2, **SETTINGS)
    checkpoint = open_checkpoint(folder)
    plan = plan_memory(config, checkpoint)
    folder.rename(tmp_path / "gone")
    monkeypatch.setattr(executor, "load_runner", read_slowly)
    constraints = Constraints(None, 512, ())
    before = children()
    with pytest.raises(CheckpointError, match=f"{folder} does not exist") as caught:
        executor.start_executor(config, checkpoint, plan, constraints, lambda *_: None)
    assert "on rank 1:\nTraceback" in caught.value.__notes__[0]
    assert children() == before


def test_a_rank_killed_in_the_middle_is_an_error_at_once(pairs: dict[str, Pair]) -> None:
    before = children()
    llm, victim = pairs["llama"].on_two, pairs["llama"].rank_1
    threading.Timer(0.1, os.kill, (victim, signal.SIGKILL)).start()
    started = time.monotonic()
    with pytest.raises(EngineError, match=rf"rank 1 \(process {victim}\) was killed by SIGKILL"):
        generate_without_end(llm)
    assert time.monotonic() - started < 5.0
    assert children() == before - {victim}
    with pytest.raises(EngineError, match="make a new engine"):
        llm.generate(PROMPTS[0], GREEDY)
    other = pairs["dbrx"]
    assert other.on_two.generate(PROMPTS[0], GREEDY)[0].token_ids, "the other model lives on"
    other.on_two.close()
    other.on_two.close()
    assert children() == set()
