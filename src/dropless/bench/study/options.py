"""What a run of the study is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Where = Literal["slice", "whole"]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Settings of all parts; each takes those that concern it."""

    on: Where  # slice: one rank's part on one GPU; whole: all ranks, each on a GPU of its own
    ranks: int  # that share the model
    tiny: bool  # small shapes on the CPU, to try the study out
    models: tuple[str, ...]
    users: tuple[int, ...]  # ascending
    input_tokens: int
    output_tokens: int
    user_every_s: float  # between two new users
    window_s: float  # at least so long is measured with each number of users
    all_reduce: Path  # results of benchmarks/all_reduce.py
    memory_fraction: float
    minutes: float  # no measurement begins after that
    say: Say
    started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        return "cpu" if self.tiny else "cuda"

    @property
    def deadline(self) -> float:
        """In `time.monotonic` seconds."""
        return self.started + 60.0 * self.minutes
