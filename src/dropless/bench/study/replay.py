"""The closed loop without a GPU: the engine schedules its users for real, and each step takes as
long as steps of its kind were measured to take."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from dropless.bench.study.closed_loop import ClosedLoop, Window
from dropless.bench.study.data import Point
from dropless.bench.study.models import Room
from dropless.engine.constraints import Constraints
from dropless.engine.engine import Engine
from dropless.engine.step import StepInput, StepResult

Extra = Callable[[int], float]  # seconds of a step of so many tokens that were not measured with it


class StepTimes:
    """A step's seconds by its rows and prompt tokens: straight lines between what was measured, and
    on beyond the largest."""

    def __init__(self, points: Iterable[Point]) -> None:
        self._curves: dict[str, list[tuple[float, float, float]]] = {}
        for point in points:
            at = (point["decodes"], point["prompt_tokens"], point["ms"] / 1e3)
            self._curves.setdefault(point["kind"], []).append(at)
        for curve in self._curves.values():
            curve.sort()
        self._known: dict[tuple[int, int], float] = {}

    def seconds(self, decodes: int, prompt_tokens: int) -> float:
        """Of a step of so many rows with one token each, and so many tokens of prompts."""
        key = (decodes, prompt_tokens)
        if key not in self._known:
            self._known[key] = self._find(decodes, prompt_tokens)
        return self._known[key]

    def _find(self, decodes: int, prompt_tokens: int) -> float:
        alone = self._at("decode", decodes)[1]
        if prompt_tokens == 0:
            return alone
        beside = [self._at(kind, decodes) for kind in ("short", "prompt", "full")]
        # Without rows a step is nothing but its prompts: there is no line from none of them.
        places = [(0.0, alone), *beside] if decodes else beside
        return max(0.0, _line(prompt_tokens, *zip(*places, strict=True)))

    def _at(self, kind: str, decodes: int) -> tuple[float, float]:
        """Prompt tokens and seconds of this kind of step with so many rows."""
        rows, tokens, seconds = zip(*self._curves[kind], strict=True)
        return _line(decodes, rows, tokens), _line(decodes, rows, seconds)


def _line(x: float, xs: tuple[float, ...], ys: tuple[float, ...]) -> float:
    if x <= xs[-1] or len(xs) == 1:
        return float(np.interp(x, xs, ys))
    return ys[-1] + (x - xs[-1]) * (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])


@dataclass(slots=True)
class _Clock:
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class _ReplayedStep:
    step: StepInput
    seconds: float
    clock: _Clock

    def result(self) -> StepResult:
        self.clock.now += self.seconds
        count = len(self.step.rows)
        token_ids = [0 if sampled else None for sampled in self.step.sample]
        return StepResult(token_ids, [None] * count)


@dataclass(frozen=True, slots=True)
class _ReplayingExecutor:
    """In the place of a GPU: each step begins when the one before has ended."""

    times: StepTimes
    extra: Extra
    clock: _Clock = field(default_factory=_Clock)
    overlaps: bool = True

    def launch(self, step: StepInput) -> _ReplayedStep:
        decodes = step.num_tokens.count(1)
        tokens = sum(step.num_tokens)
        seconds = self.times.seconds(decodes, tokens - decodes) + self.extra(tokens)
        return _ReplayedStep(step, seconds, self.clock)

    @property
    def expert_counts(self) -> list[list[int]]:
        """Nothing is routed."""
        return []

    def survives(self, error: BaseException) -> bool:  # noqa: ARG002
        """No step fails here."""
        return False

    def close(self) -> None:
        """Nothing was started."""


def replaying_engine(
    times: StepTimes, room: Room, extra: Extra = lambda _: 0.0
) -> tuple[Engine, Callable[[], float]]:
    """An engine of this room in made-up time, and its clock in seconds."""
    executor = _ReplayingExecutor(times, extra)
    engine = Engine(
        executor,
        Constraints(None, vocab_size=1, eos_token_ids=()),
        num_blocks=room.num_blocks,
        block_size=room.block_size,
        max_model_len=room.max_model_len,
        max_running_requests=room.max_running_requests,
        max_waiting_requests=1 << 20,
        step_token_budget=room.step_token_budget,
        prefix_caching=False,
    )
    return engine, lambda: executor.clock.now


def replayed_loop(
    times: StepTimes, room: Room, extra: Extra, *, input_tokens: int, output_tokens: int
) -> ClosedLoop:
    """A closed loop in such an engine."""
    engine, clock = replaying_engine(times, room, extra)
    return ClosedLoop(
        engine,
        prompt=lambda: [0] * input_tokens,
        output_tokens=output_tokens,
        clock=clock,
        is_late=lambda: False,
    )


def replay(loop: ClosedLoop, users: Iterable[int], every_s: float) -> Iterable[Window]:
    """For each number of users, ascending: they come one after another, all answers begun by then
    end, and two answers of each are watched."""
    for count in users:
        loop.grow(count, every_s)
        loop.settle()
        yield loop.observe(2 * count)
