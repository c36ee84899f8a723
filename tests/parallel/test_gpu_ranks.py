"""One rank a GPU: the tokens of one GPU, and a lost rank is an error."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from dropless import LLM, SamplingParams
from dropless.checkpoints.writer import write_tiny_dbrx
from dropless.errors import EngineError

from . import collective_checks
from .team import Team

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]

PROMPTS = [[11, 45, 97, 3, 200, 154, 9], [7] * 40, list(range(5, 120))]
GREEDY = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)
MIXED = [
    SamplingParams(seed=5, max_tokens=20, top_p=0.9, ignore_eos=True),
    SamplingParams(seed=6, max_tokens=20, repetition_penalty=1.3, ignore_eos=True),
    GREEDY,
]


def test_two_gpus_give_the_tokens_of_one_and_a_killed_rank_is_an_error(tmp_path: Path) -> None:
    write_tiny_dbrx(tmp_path)
    settings = {"device": "cuda", "dtype": "float32", "kv_cache_bytes": 2**24}
    with LLM(tmp_path, **settings) as alone:
        expected = [result.token_ids for result in alone.generate(PROMPTS, GREEDY)]
        expected_mixed = [result.token_ids for result in alone.generate(PROMPTS, MIXED)]
    with LLM(tmp_path, tensor_parallel_size=2, **settings) as on_two:
        assert [result.token_ids for result in on_two.generate(PROMPTS, GREEDY)] == expected
        assert [result.token_ids for result in on_two.generate(PROMPTS, MIXED)] == expected_mixed
        (rank_1,) = rank_processes()
        threading.Timer(0.1, os.kill, (rank_1, signal.SIGKILL)).start()
        started = time.monotonic()
        with pytest.raises(EngineError, match=rf"rank 1 \(process {rank_1}\) was killed"):
            generate_without_end(on_two)
        assert time.monotonic() - started < 5.0


def test_ranks_on_two_gpus_sum_and_broadcast() -> None:
    with Team(2, on_gpus=True) as team:
        assert team.group.one_shot is not None, "GPUs with NVLink sum in one kernel"
        team.run(collective_checks.check_on_gpus)


def generate_without_end(llm: LLM) -> None:
    while True:
        llm.generate(PROMPTS[0], GREEDY)


def rank_processes() -> list[int]:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    return [pid for pid, command in commands.items() if b"rank_main" in command]
