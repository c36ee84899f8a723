"""Engines and ranks for fault tests, in processes of their own: the real ones, with one thing
wrong."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil

from dropless.engine.config import EngineConfig
from dropless.engine.messages import EngineReady, EngineRequest, TokenDelta

if TYPE_CHECKING:
    from dropless.engine.engine import Engine
    from dropless.parallel.rank_messages import Place

Progress = Callable[[str, float], None]

# A prompt that starts with one of these makes the next step misbehave.
RAISE_TOKEN = 3
SLEEP_TOKEN = 4
SLEEP_S = 1.5


def build_misbehaving(config: EngineConfig, progress: Progress) -> tuple[Engine, EngineReady]:
    """The real engine, whose step raises or sleeps when a request asks for it."""
    from dropless.engine.build import build_engine

    engine, ready = build_engine(config, progress)
    real_add, real_step = engine.add_request, engine.step
    wishes: list[int] = []

    def add_request(request: EngineRequest) -> None:
        real_add(request)
        wishes.append(request.prompt_token_ids[0])

    def step() -> list[TokenDelta]:
        while wishes:
            wish = wishes.pop()
            if wish == RAISE_TOKEN:
                raise RuntimeError("a kernel failed")
            if wish == SLEEP_TOKEN:
                time.sleep(SLEEP_S)
        return real_step()

    engine.add_request, engine.step = add_request, step  # type: ignore[method-assign]
    return engine, ready


def build_once(config: EngineConfig, progress: Progress) -> tuple[Engine, EngineReady]:
    """Works the first time in a model folder; later processes die while they load."""
    mark = config.model_path / "built-once"
    if mark.exists():
        os._exit(3)
    mark.touch()
    from dropless.engine.build import build_engine

    return build_engine(config, progress)


def lack_memory_at_the_start(place: Place, *arguments: Any) -> None:
    """The program of a rank whose device has no memory for the model."""
    import torch

    from dropless.engine import executor

    def load_runner(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    executor.load_runner = load_runner  # type: ignore[assignment]
    executor.follow_rank_0(place, *arguments)


def lack_memory_in_a_step(place: Place, *arguments: Any) -> None:
    """The program of a rank whose device has memory for four steps."""
    import torch

    from dropless.engine import executor
    from dropless.engine.runner import Runner

    compute = Runner._compute
    steps = itertools.count()

    def failing_compute(self: Runner, arrays: Any) -> Any:
        if next(steps) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return compute(self, arrays)

    Runner._compute = failing_compute  # type: ignore[method-assign]
    executor.follow_rank_0(place, *arguments)


def rank_processes() -> list[psutil.Process]:
    """Processes of ranks above 0 that this process has started."""
    children = psutil.Process().children()
    return [child for child in children if "dropless.parallel.rank_main" in child.cmdline()]
