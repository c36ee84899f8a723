"""What a run of the study is asked for, and how large everything is that it measures."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Where = Literal["slice", "whole"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes of all parts. Lengths are in tokens."""

    device: Literal["cpu", "cuda"]
    users: tuple[int, ...]  # ascending
    input_tokens: int
    output_tokens: int
    step_token_budget: int
    short_prompt: int
    decode_steps: int  # timed at each number of rows
    checked_users: int  # of the closed loop that is really run
    capacity_tokens: tuple[int, ...]
    parallel_tokens: tuple[int, ...]

    @property
    def is_tiny(self) -> bool:
        """Whether it only shows that the study runs, on a CPU."""
        return self.device == "cpu"


FULL = Scale(
    device="cuda",
    users=(1, 2, 4, 8, 16, 32, 64, 128, 200),
    input_tokens=2000,
    output_tokens=256,
    step_token_budget=4096,
    short_prompt=256,
    decode_steps=16,
    checked_users=8,
    capacity_tokens=(64, 256, 1024, 4096, 8192),
    parallel_tokens=(1, 8, 32, 128, 512, 2048, 8192),
)
TINY = Scale(
    device="cpu",
    users=(1, 2, 4),
    input_tokens=24,
    output_tokens=8,
    step_token_budget=64,
    short_prompt=8,
    decode_steps=4,
    checked_users=2,
    capacity_tokens=(16, 64),
    parallel_tokens=(1, 16),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Settings of all parts; each takes those that concern it."""

    scale: Scale
    on: Where  # slice: one rank's part on one GPU; whole: all ranks, each on a GPU of its own
    ranks: int  # that share the model
    models: tuple[str, ...]
    users: tuple[int, ...]  # ascending
    data: Path  # the folder of results
    deadline: float  # in `time.monotonic` seconds; no measurement begins after that

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self.deadline
