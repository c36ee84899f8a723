"""How long the steps of an engine take, by their rows and prompt tokens."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from dropless.bench.study.data import Point
from dropless.bench.study.models import GROWTH
from dropless.bench.study.settings import Options
from dropless.engine.engine import Engine
from dropless.engine.messages import EngineRequest
from dropless.engine.sampling_params import SamplingParams
from dropless.errors import EngineError

_REPEATS = 2  # of a step with a prompt, of which the faster counts
_PATIENCE = 4  # steps until a prompt must have started
KINDS = ("decode", "short", "prompt", "full")


@dataclass(frozen=True, slots=True)
class _Step:
    seconds: float
    rows: int  # that had a token before
    started: int  # prompts of which this was the last part


def measure_steps(engine: Engine, rows: int, vocab_size: int, options: Options) -> Iterator[Point]:
    """Points of four kinds, as they are measured: with `decodes` rows of one token each, "decode"
    has no prompt beside them, "short" a short one, "prompt" a user's and "full" as much of several
    as the step's budget holds. Ends early when time is up.

    Rows are real requests in the middle of their answers, at most `rows` of them; the engine has
    room for one more.
    """
    scale = options.scale
    meter = _Meter(engine, vocab_size)
    budget = scale.step_token_budget
    prompts = {"short": [scale.short_prompt], "prompt": [scale.input_tokens]}
    halves = [budget - budget // 2, budget // 2]
    meter.alone(halves)  # what is set up at first use
    for kind, lengths in {**prompts, "full": halves}.items():
        taken = min(meter.alone(lengths) for _ in range(_REPEATS))
        yield _point(kind, 0, sum(lengths), taken, 0.0)
    for users in row_counts(options.users, rows):
        if options.is_late:
            return
        full = meter.fill(users, scale.input_tokens + scale.output_tokens // 2)
        if full is not None:
            yield _point("full", full.rows, budget - full.rows, full.seconds, meter.context)
        decode_s = meter.decode(scale.decode_steps)
        yield _point("decode", users, 0, decode_s, meter.context)
        for kind, [length] in prompts.items():
            taken = min(meter.beside(length, decode_s) for _ in range(_REPEATS))
            yield _point(kind, users, length, taken, meter.context)
    meter.clear()


def row_counts(users: tuple[int, ...], rows: int) -> list[int]:
    """Those of `users` that run at once, and the most that do."""
    most = min(rows, max(users))
    return [*(count for count in users if count < most), most]


def _point(kind: str, decodes: int, tokens: int, seconds: float, context: float) -> Point:
    return {
        "kind": kind,
        "decodes": decodes,
        "prompt_tokens": tokens,
        "ms": 1e3 * seconds,
        "context": context,
    }


class _Meter:
    """Drives an engine that belongs to it alone."""

    def __init__(self, engine: Engine, vocab_size: int) -> None:
        self._engine = engine
        self._vocab_size = vocab_size
        self._random = random.Random(0)
        self._numbers = itertools.count()
        self._prompts: dict[str, int] = {}  # lengths of those that have had no token yet
        self._lengths: dict[str, int] = {}  # of requests that have had a token, and still run

    @property
    def context(self) -> float:
        """Mean length of the rows, in tokens."""
        return sum(self._lengths.values()) / max(1, len(self._lengths))

    def alone(self, lengths: list[int]) -> float:
        """Seconds of prompts that nothing runs beside."""
        began = time.perf_counter()
        for length in lengths:
            self._add(length, max_tokens=1)
        started = 0
        while started < len(lengths):
            started += self._step().started
        return time.perf_counter() - began

    def fill(self, rows: int, length: int) -> _Step | None:
        """Lets `rows` run, those that are missing with prompts of `length`. Of the steps on the
        way that were full the one of median time; None if there were too few."""
        missing = rows - len(self._lengths)
        for _ in range(missing):
            self._add(length, max_tokens=GROWTH)
        steps: list[_Step] = []
        while len(self._lengths) < rows:
            steps.append(self._step())
        # The first was on its way before, the second was launched beside it, the last is not full.
        full = sorted(steps[2:-1], key=lambda step: step.seconds)
        return full[len(full) // 2] if full else None

    def decode(self, steps: int) -> float:
        """Mean seconds of a step of the rows alone."""
        for _ in range(2):
            self._step()
        return sum(self._step().seconds for _ in range(steps)) / steps

    def beside(self, length: int, decode_s: float) -> float:
        """Seconds of a step with a prompt beside the rows, of which one alone takes `decode_s`. The
        steps around it count as much as they take alone, for the host launches one while another
        runs, and only together is their time known."""
        self._add(length, max_tokens=1)
        steps = [self._step()]
        while not steps[-1].started:
            if len(steps) == _PATIENCE:
                raise EngineError(f"a prompt of {length} tokens found no room beside the rows")
            steps.append(self._step())
        steps.append(self._step())
        return sum(step.seconds for step in steps) - (len(steps) - 1) * decode_s

    def clear(self) -> None:
        """Ends all rows."""
        self._engine.abort(list(self._lengths))
        self._lengths.clear()
        while self._engine.has_work():
            self._engine.step()

    def _add(self, length: int, *, max_tokens: int) -> None:
        name = f"steps-{next(self._numbers)}"
        prompt = self._random.choices(range(self._vocab_size), k=length)
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        self._engine.add_request(EngineRequest(name, prompt, params))
        self._prompts[name] = length

    def _step(self) -> _Step:
        began = time.perf_counter()
        deltas = self._engine.step()
        seconds = time.perf_counter() - began
        rows = started = 0
        for delta in deltas:
            name = delta.request_id
            if name in self._lengths:
                rows += 1
                self._lengths[name] += 1
            else:
                started += 1
                self._lengths[name] = self._prompts.pop(name) + 1
            if delta.finish_reason is not None:
                if delta.finish_reason != "length":
                    raise EngineError(f"{name} ended with {delta.finish_reason}: {delta.error}")
                del self._lengths[name]
        return _Step(seconds, rows, started)
