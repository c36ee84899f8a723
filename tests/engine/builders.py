"""Engines for fault tests, built inside the engine process: the real one, with one thing wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dropless.engine.config import EngineConfig
from dropless.engine.messages import EngineReady, EngineRequest, TokenDelta

if TYPE_CHECKING:
    from dropless.engine.engine import Engine

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
