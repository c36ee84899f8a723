"""What the engine's bookkeeping costs a step: scheduling, building the step, taking in its tokens.

    python -m benchmarks.scheduler_overhead

No model runs: tokens come from a list, because only what surrounds the model is measured. 256
requests run and 1,000 wait, in three situations: all decode; four end and four start in a step;
the cache is so small that requests are preempted. Each with one owner of all requests, and with 200
between whom the engine is shared. The limit is 1 ms, a tenth of a
decoding step of 10 ms. Wall time is what the engine reports of itself; CPU time leaves out what
other programs on the machine take. Of three interleaved rounds the middle one counts. Writes
results/scheduler_overhead.json beside this script.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

from dropless.engine.constraints import Constraints
from dropless.engine.engine import Engine
from dropless.engine.messages import EngineRequest
from dropless.engine.sampling_params import SamplingParams
from dropless.engine.step import LaunchedStep, StepInput, StepResult

RESULT = Path(__file__).parent / "results" / "scheduler_overhead.json"
LIMIT_MS = 1.0
RUNNING, WAITING = 256, 1000
WARM_UP, STEPS, ROUNDS = 200, 2000, 3
VOCAB, BLOCK, BUDGET = 32_000, 16, 8192


@dataclass(frozen=True, slots=True)
class Situation:
    name: str
    prompt_tokens: int  # mean, as output_tokens; a request's own are drawn up to half away from it
    output_tokens: int
    num_blocks: int
    owners: int = 1


ONE_OWNER = (
    Situation("decode", 400, 100_000, 64_000),
    Situation("turnover", 400, 64, 64_000),
    Situation("preemption", 64, 512, RUNNING * 16),
)
SITUATIONS = (*ONE_OWNER, *(replace(situation, owners=200) for situation in ONE_OWNER))


@dataclass(frozen=True, slots=True)
class Measurement:
    situation: str
    owners: int
    running: float  # mean over the steps, as all that follow
    computed_tokens: float
    preemptions: float
    median_ms: float
    p99_ms: float
    cpu_median_ms: float
    cpu_p99_ms: float
    limit_ms: float
    limit_over_median: float


@dataclass(frozen=True, slots=True)
class Known:
    """A step that needs no waiting for."""

    outcome: StepResult

    def result(self) -> StepResult:
        return self.outcome


class Drawn:
    """An executor that computes nothing, and overlaps as one on a GPU does."""

    overlaps = True

    def __init__(self, rng: random.Random) -> None:
        self._tokens = itertools.cycle([rng.randrange(3, VOCAB) for _ in range(9973)])
        self.computed_tokens = 0
        self.cpu_s = 0.0

    def launch(self, step: StepInput) -> LaunchedStep:
        started = time.process_time()
        self.computed_tokens += sum(step.num_tokens)
        tokens = [next(self._tokens) if sampled else None for sampled in step.sample]
        result = StepResult(tokens, [None] * len(tokens))
        self.cpu_s += time.process_time() - started
        return Known(result)

    def survives(self, error: BaseException) -> bool:
        raise AssertionError(error)

    def close(self) -> None:
        pass


def requests(situation: Situation, rng: random.Random) -> Iterator[EngineRequest]:
    """Without end; the first part of each prompt is the same for all."""
    shared = [rng.randrange(3, VOCAB) for _ in range(situation.prompt_tokens // 4)]
    for number in itertools.count():
        own = round(situation.prompt_tokens * rng.uniform(0.5, 1.5)) - len(shared)
        prompt = shared + [rng.randrange(3, VOCAB) for _ in range(own)]
        output = round(situation.output_tokens * rng.uniform(0.5, 1.5))
        params, owner = SamplingParams(max_tokens=output), str(rng.randrange(situation.owners))
        yield EngineRequest(str(number), prompt, params, owner)


def measure(situation: Situation) -> Measurement:
    rng = random.Random(situation.name)
    executor = Drawn(rng)
    engine = Engine(
        executor,
        Constraints(None, VOCAB, [2]),
        num_blocks=situation.num_blocks,
        block_size=BLOCK,
        max_model_len=situation.num_blocks * BLOCK,
        max_running_requests=RUNNING,
        max_waiting_requests=RUNNING + WAITING,
        step_token_budget=BUDGET,
        prefix_caching=True,
    )
    arrivals = requests(situation, rng)
    times, cpu_times, running = [], [], []
    for step in range(WARM_UP + STEPS):
        stats = engine.stats()
        wanted = RUNNING + WAITING if step == 0 else WAITING
        for request in itertools.islice(arrivals, max(0, wanted - stats.waiting)):
            engine.add_request(request)
        if step == WARM_UP:
            computed_before, preempted_before = executor.computed_tokens, stats.preemptions
        cpu_before = time.process_time() - executor.cpu_s
        engine.step()
        cpu_s = time.process_time() - executor.cpu_s - cpu_before
        if step >= WARM_UP:
            cpu_times.append(cpu_s * 1e3)
            times.append(engine.stats().last_schedule_ms)
            running.append(engine.stats().running)
    median = statistics.median(times)
    return Measurement(
        situation.name,
        situation.owners,
        running=statistics.fmean(running),
        computed_tokens=(executor.computed_tokens - computed_before) / STEPS,
        preemptions=(engine.stats().preemptions - preempted_before) / STEPS,
        median_ms=median,
        p99_ms=statistics.quantiles(times, n=100)[98],
        cpu_median_ms=statistics.median(cpu_times),
        cpu_p99_ms=statistics.quantiles(cpu_times, n=100)[98],
        limit_ms=LIMIT_MS,
        limit_over_median=LIMIT_MS / median,
    )


def middle(repeats: Sequence[Measurement]) -> Measurement:
    """The one whose median is the median of all."""
    return sorted(repeats, key=lambda m: m.median_ms)[len(repeats) // 2]


def main() -> None:
    document: dict[str, Any] = {"machine": machine()}
    document["settings"] = {
        "waiting": WAITING,
        "max_running": RUNNING,
        "steps": STEPS,
        "rounds": ROUNDS,
    }
    rounds = [[measure(situation) for situation in SITUATIONS] for _ in range(ROUNDS)]
    found = [middle(repeats) for repeats in zip(*rounds, strict=True)]
    document["measurements"] = [asdict(measurement) for measurement in found]
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    for m in found:
        print(
            f"{m.situation:11s} {m.owners:3d} owners, {m.running:4.0f} running, "
            f"{m.computed_tokens:6.0f} tokens a step, "
            f"{m.preemptions:.2f} preempted: median {m.median_ms:.3f} ms, p99 {m.p99_ms:.3f} ms "
            f"(CPU {m.cpu_median_ms:.3f} and {m.cpu_p99_ms:.3f} ms); limit {m.limit_ms:g} ms, "
            f"{m.limit_over_median:.1f} times the median"
        )


if __name__ == "__main__":
    main()
