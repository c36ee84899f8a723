"""What follows from the serving data: curves over users, ratios, and how true the replay is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dropless.bench.gpus import Gpu
from dropless.bench.study import published
from dropless.bench.study.closed_loop import ClosedLoop, Window
from dropless.bench.study.data import Document, Point
from dropless.bench.study.models import MODELS, Room, config_of
from dropless.bench.study.replay import StepTimes, replay, replayed_loop
from dropless.bench.study.serving import CHECK
from dropless.bench.study.sums import SumCost
from dropless.bench.study.utilisation import gpu_named, mbu, mean_rows, mfu
from dropless.models.config import ModelConfig
from dropless.models.registry import parse_config

USER_EVERY_S = 1.0
INTERACTIVE_MS = 30.0


class Curve:
    """One model in one place, replayed from its measured steps."""

    def __init__(self, document: Document, sums: SumCost | None) -> None:
        """`sums` is the cost that a slice's steps do not have in them."""
        about = document["about"]
        self.model: str = about["model"]
        self.document = document
        self.room = Room(**document["room"])
        self.sums = sums
        self._about = about
        self._times = StepTimes(point for point in document["points"] if point["kind"] != CHECK)
        self._gpu: Gpu | None = gpu_named(about["gpu"])

    @cached_property
    def shape(self) -> ModelConfig:
        return parse_config(config_of(self.model, tiny=self._about["gpu"] is None))

    @cached_property
    def windows(self) -> dict[int, Window]:
        """By users: those that were measured, and more if more cannot run at once."""
        most = max(p["decodes"] for p in self.document["points"] if p["kind"] == "decode")
        is_full = most >= self.room.max_running_requests
        users = [count for count in self.document["users"] if is_full or count <= most]
        windows = replay(self._loop(with_sums=True), users, USER_EVERY_S)
        return {window.users: window for window in windows}

    @cached_property
    def check(self) -> tuple[Point, Window] | None:
        """The closed loop that was really run, and its replay."""
        found = next((p for p in self.document["points"] if p["kind"] == CHECK), None)
        if found is None:
            return None
        loop = self._loop(with_sums=False)
        loop.grow(found["users"], found["every_s"])
        return found, loop.observe(found["answers"])

    def step_ms(self, decodes: int, prompt_tokens: int) -> float:
        """As measured, and between: with the sums of a slice."""
        seconds = self._times.seconds(decodes, prompt_tokens)
        return 1e3 * (seconds + self.sum_seconds(decodes + prompt_tokens))

    def sum_seconds(self, num_tokens: int) -> float:
        """What is added to a step of so many tokens."""
        if self.sums is None:
            return 0.0
        return self.sums.step_seconds(num_tokens, self.shape.hidden_size, self.shape.num_layers)

    def rate(self, users: int) -> float | None:
        """Output tokens a second."""
        window = self.windows.get(users)
        return None if window is None else window.output_tokens_per_s

    def rate_within(self, tpot_ms: float) -> float | None:
        """The most output tokens a second of a point whose mean TPOT is no longer."""
        rates = [w.output_tokens_per_s for w in self.windows.values() if w.tpot.mean <= tpot_ms]
        return max(rates, default=None)

    def prompt_share(self, users: int) -> float:
        """Of the time: what prompts add to the steps of the rows that run beside them."""
        window = self.windows[users]
        decoding_ms = window.steps * self.step_ms(max(1, round(mean_rows(window))), 0)
        return max(0.0, 1.0 - decoding_ms / 1e3 / window.seconds)

    def experts_read(self, users: int) -> float:
        """Of one layer, by a decode step of this many users, if routing is even."""
        experts, rows = self.shape.num_experts, mean_rows(self.windows[users])
        return float(experts * (1.0 - (1.0 - self.shape.top_k / experts) ** max(1.0, rows)))

    def utilisation(self, users: int) -> tuple[float, float] | None:
        """MBU and MFU; None on a GPU whose ceilings are not known."""
        if self._gpu is None:
            return None
        window, ranks = self.windows[users], self._about["ranks"]
        input_tokens = self._about["input_tokens"]
        context = input_tokens + self._about["output_tokens"] / 2
        return (
            mbu(window, self.shape, ranks, context, self._gpu),
            mfu(window, self.shape, ranks, input_tokens, context, self._gpu),
        )

    def _loop(self, *, with_sums: bool) -> ClosedLoop:
        return replayed_loop(
            self._times,
            self.room,
            self.sum_seconds if with_sums else lambda _: 0.0,
            input_tokens=self._about["input_tokens"],
            output_tokens=self._about["output_tokens"],
        )


@dataclass(frozen=True, slots=True)
class Place:
    """Where models were compared: the same kind and number of GPUs, shared in the same way."""

    name: str  # "slice8" or "whole2"
    on: str
    ranks: int
    curves: dict[str, Curve]  # by model, in the order of MODELS


def places(documents: Sequence[Document], sums_of: dict[int, SumCost]) -> list[Place]:
    """`sums_of` has the cost of sums among each number of ranks of which a slice was measured."""
    found: dict[tuple[str, int], dict[str, Curve]] = {}
    for document in documents:
        if any(point["kind"] == "decode" for point in document["points"]):
            about = document["about"]
            sums = sums_of[about["ranks"]] if about["on"] == "slice" else None
            curve = Curve(document, sums)
            found.setdefault((about["on"], about["ranks"]), {})[curve.model] = curve
    return [
        Place(f"{on}{ranks}", on, ranks, {m: curves[m] for m in MODELS if m in curves})
        for (on, ranks), curves in sorted(found.items(), reverse=True)
    ]


def speed_up(curve: Curve, over: Curve) -> dict[int, float]:
    """Ratio of output tokens a second, by users, where both were measured."""
    ratios = {}
    for users, window in curve.windows.items():
        base = over.rate(users)
        if base is not None:
            ratios[users] = window.output_tokens_per_s / base
    return ratios


def published_speed_up(model: str, users: int) -> float:
    """Interpolated over the logarithm of users."""
    at = np.log(np.array(published.USERS, dtype=float))
    return float(np.interp(np.log(users), at, published.SPEED_UPS[model]))
