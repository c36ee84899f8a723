"""What one user's thousand requests do to the first token of another.

    python -m benchmarks.fairness                      # simulation, engine and server
    python -m benchmarks.fairness --only simulation    # a GPU's step times, in seconds

Ada asks one short question after the other, with pauses. Beside her is Bob, in one of three ways:

- `share`: he keeps half of the rows busy, which is his share, and no more;
- `thousand`: he has 1,000 requests in the server, all the time;
- `queue`: the same, and the engine takes him and Ada for one owner, so that only arrival counts:
  what a server does that knows no users.

The figure is how much longer Ada waits for her first token in `thousand` than in `share`; the goal
is 25 % at most. Bob's requests are of his own prompts and end after different numbers of tokens.

- `simulation`: steps take about the time of one of eight ranks' slice of DBRX on an H100; rows or
  cache blocks are what is short.
- `engine`: a real model on one thread of a CPU; the clock is its processor time, so that nothing
  else on the machine counts.
- `server`: the same behind HTTP, two users with their tokens. The ways take turns, so that what
  else the machine does disturbs all alike.

Writes results/fairness.json beside this script.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import httpx
from benchmarks.machine import machine
from benchmarks.served import served, tokens_of

from dropless import LLM
from dropless.bench.sse_client import Endpoint, post_events
from dropless.engine.constraints import Constraints
from dropless.engine.engine import Engine
from dropless.engine.messages import EngineRequest
from dropless.engine.sampling_params import SamplingParams
from dropless.engine.step import StepInput, StepResult

RESULT = Path(__file__).parent / "results" / "fairness.json"
GOAL = 1.25
MANY = 1000
ROWS = 8  # of the server
START_S, PATIENCE_S = 120.0, 60.0
Way = Literal["share", "thousand", "queue"]


@dataclass(frozen=True, slots=True)
class Measurement:
    where: str
    way: Way
    questions: int  # that Ada got an answer to begin with
    unanswered: int  # within a minute
    mean_ms: float
    p50_ms: float
    p90_ms: float
    bob_tokens_per_s: float

    @classmethod
    def of(
        cls, where: str, way: Way, seconds: Sequence[float], unanswered: int, bob: float
    ) -> Measurement:
        cuts = statistics.quantiles(seconds, n=10) if len(seconds) > 1 else [0.0] * 9
        mean = statistics.fmean(seconds) if seconds else 0.0
        figures = [round(each * 1e3, 1) for each in (mean, cuts[4], cuts[8])]
        return cls(where, way, len(seconds), unanswered, *figures, round(bob, 1))


# Simulated


@dataclass
class Clock:
    now: float = 0.0


@dataclass
class _Launched:
    step: StepInput
    clock: Clock

    def result(self) -> StepResult:
        step = self.step
        pairs = sum(c * n for c, n in zip(step.num_computed, step.num_tokens, strict=True))
        tokens = sum(step.num_tokens)
        # Few requests read few experts; beyond, each token costs its arithmetic, and its attention.
        self.clock.now += 2e-3 + 10e-3 * (1.0 - 0.75**tokens) + 18e-6 * tokens + 0.4e-9 * pairs
        return StepResult([5 if due else None for due in step.sample], [None] * len(step.rows))


@dataclass
class _Device:
    clock: Clock = field(default_factory=Clock)
    overlaps: bool = True

    def launch(self, step: StepInput) -> _Launched:
        return _Launched(step, self.clock)

    def survives(self, error: BaseException) -> bool:  # noqa: ARG002
        return False

    @property
    def expert_counts(self) -> list[list[int]]:
        return []

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Shapes:
    """Least and most tokens of prompts and answers, and how many questions Ada asks a second when
    she is not waiting."""

    bob_prompt: tuple[int, int]
    bob_output: tuple[int, int]
    ada_prompt: tuple[int, int]
    ada_output: int
    ada_rate: float


ON_GPU = Shapes((200, 600), (100, 400), (200, 600), 20, 5.0)
ON_CPU = Shapes((30, 90), (30, 90), (40, 40), 4, 1.0)


def drive(
    engine: Engine, now: Callable[[], float], shapes: Shapes, in_flight: int, *, is_queue: bool
) -> Iterator[tuple[list[float], int, float]]:
    """Steps of an engine that both use: after each, what Ada has waited so far, her question
    without an answer, and Bob's tokens a second."""
    rng = random.Random(1)
    live = {"ada": 0, "bob": 0}
    asked_at: dict[str, float] = {}
    waits: list[float] = []
    numbers = itertools.count()
    bob_tokens, began = 0, now()
    next_question = began

    def send(user: str, prompt_tokens: int, output: int) -> str:
        name = f"{user} {next(numbers)}"
        prompt = [rng.randrange(3, 1000) for _ in range(prompt_tokens)]
        params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
        engine.add_request(EngineRequest(name, prompt, params, "all" if is_queue else user))
        live[user] += 1
        return name

    while True:
        while live["bob"] < in_flight:
            send("bob", rng.randint(*shapes.bob_prompt), rng.randint(*shapes.bob_output))
        if now() >= next_question and not live["ada"]:
            name = send("ada", rng.randint(*shapes.ada_prompt), shapes.ada_output)
            asked_at[name] = next_question
        for delta in engine.step():
            user = delta.request_id.partition(" ")[0]
            asked = asked_at.pop(delta.request_id, None)
            if asked is not None:
                waits.append(now() - asked)
            bob_tokens += len(delta.new_token_ids) if user == "bob" else 0
            if delta.finish_reason is not None:
                live[user] -= 1
                if user == "ada":
                    next_question = now() + rng.expovariate(shapes.ada_rate)
        yield waits, len(asked_at), bob_tokens / (now() - began)


def measure(
    where: str,
    way: Way,
    engine: Engine,
    now: Callable[[], float],
    shapes: Shapes,
    *,
    places: int,
    seconds: float,
) -> Measurement:
    """`places` is how many requests fit at the same time. The first tenth does not count."""
    in_flight = places // 2 if way == "share" else MANY
    run = drive(engine, now, shapes, in_flight, is_queue=way == "queue")
    began, early = now(), 0
    for waits, unanswered, rate in run:
        if now() - began < seconds / 10:
            early = len(waits)
        elif now() - began > seconds:
            return Measurement.of(where, way, waits[early:], unanswered, rate)
    raise AssertionError


def simulated(way: Way, num_blocks: int) -> Measurement:
    rows, device = 256, _Device()
    engine = Engine(
        device,
        Constraints(None, 1000, [2]),
        num_blocks=num_blocks,
        block_size=16,
        max_model_len=8192,
        max_running_requests=rows,
        max_waiting_requests=4096,
        step_token_budget=8192,
        prefix_caching=True,
    )
    places = min(rows, num_blocks // 40)  # a request takes 400 and 250 tokens, 40 blocks
    where = f"simulation, {'rows' if places == rows else 'blocks'} short"
    clock = device.clock
    return measure(where, way, engine, lambda: clock.now, ON_GPU, places=places, seconds=120.0)


def in_process(model: str, way: Way, seconds: float) -> Measurement:
    """The engine alone, its clock the processor time that it takes, so that nothing else on the
    machine counts."""
    with LLM(model, threads=1, max_running_requests=ROWS, device="cpu") as llm:
        where = f"engine, {model}, {ROWS} rows"
        return measure(
            where, way, llm.engine, time.process_time, ON_CPU, places=ROWS, seconds=seconds
        )


# A real server


@contextlib.contextmanager
def server(model: str, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Its URL, and the tokens of its users. The engine has one thread and `ROWS` rows."""
    tokens = tokens_of(folder, "ada", "bob")
    entity = {"name": "m", "model": model, "engine": {"max_running_requests": ROWS, "threads": 1}}
    document = {"endpoints": [{"name": "m", "served_entities": [entity]}]}
    with served(document, folder) as (url, _):
        yield url, tokens


class Users:
    """Ada and Bob at one server."""

    def __init__(self, url: str, tokens: dict[str, str], seed: int) -> None:
        self._base = url
        self._endpoints = {user: Endpoint.parse(url, token) for user, token in tokens.items()}
        self._rng = random.Random(seed)
        self.bob_tokens = 0

    async def first_token(self, user: str, prompt_tokens: int, output: int) -> float | None:
        """Seconds until it came; the answer is read to its end, of which Bob's tokens count."""
        prompt = [self._rng.randrange(300, 20_000) for _ in range(prompt_tokens)]
        body = {
            "model": "m", "prompt": prompt, "max_tokens": output, "ignore_eos": True,
            "stream": True, "temperature": 0,
        }  # fmt: skip
        began, waited = time.perf_counter(), None
        answer = post_events(self._endpoints[user], "/v1/completions", json.dumps(body).encode())
        async with contextlib.aclosing(answer) as events:
            async for event in events:
                if event.startswith(b"{"):
                    waited = waited or time.perf_counter() - began
                    self.bob_tokens += user == "bob"
        return waited

    async def _until_there(self, count: int) -> None:
        """Until so many requests are in the engine, and they have had some seconds."""
        async with httpx.AsyncClient(timeout=None) as http:
            while True:
                stats = (await http.get(f"{self._base}/health")).json()["stats"]
                if stats is not None and stats["running"] + stats["waiting"] >= count:
                    return await asyncio.sleep(8.0)
                await asyncio.sleep(0.2)

    async def measure(self, way: Way, seconds: float) -> tuple[list[float], int, float]:
        """Ada's waits, questions without an answer, Bob's tokens a second."""
        in_flight = ROWS // 2 if way == "share" else MANY

        async def bob() -> None:
            while True:
                await self.first_token("bob", self._rng.randint(30, 90), self._rng.randint(30, 90))

        others = [asyncio.create_task(bob()) for _ in range(in_flight)]
        waits: list[float] = []
        unanswered = 0
        try:
            await self._until_there(in_flight)
            self.bob_tokens = 0
            began = time.perf_counter()
            while time.perf_counter() - began < seconds:
                user = "bob" if way == "queue" else "ada"
                try:
                    async with asyncio.timeout(PATIENCE_S):
                        waited = await self.first_token(user, 40, 4)
                except TimeoutError:
                    waited = None
                if waited is None:
                    unanswered += 1
                else:
                    waits.append(waited)
                await asyncio.sleep(self._rng.expovariate(2.0))
            return waits, unanswered, self.bob_tokens / (time.perf_counter() - began)
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(2.0)


async def on_server(model: str, rounds: int, seconds: float) -> list[Measurement]:
    ways: tuple[Way, ...] = ("share", "thousand")
    waits: dict[Way, list[float]] = {way: [] for way in (*ways, "queue")}
    missing = dict.fromkeys(waits, 0)
    rates: dict[Way, list[float]] = {way: [] for way in waits}
    with tempfile.TemporaryDirectory() as folder, server(model, Path(folder)) as (url, tokens):
        users = Users(url, tokens, seed=1)
        turns: list[Way] = [*ways * rounds, "queue"]
        for way in turns:
            found, unanswered, rate = await users.measure(way, seconds)
            waits[way] += found
            missing[way] += unanswered
            rates[way].append(rate)
            print(f"  {way:8s} {len(found)} answers, {unanswered} none, Bob {rate:.0f} tokens/s")
    return [
        Measurement.of(
            f"server, {model}", way, waits[way], missing[way], statistics.fmean(rates[way])
        )
        for way in waits
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each round")
    parser.add_argument("--only", choices=["simulation", "engine", "server"])
    arguments = parser.parse_args()
    document = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    document["machine"] = machine()
    ways: tuple[Way, ...] = ("share", "thousand", "queue")
    found: list[Measurement] = []
    if arguments.only in (None, "simulation"):
        made = [simulated(way, blocks) for blocks in (40_000, 4_000) for way in ways]
        document["simulation"] = [asdict(m) for m in made]
        found += made
    if arguments.only in (None, "engine"):
        made = [in_process(arguments.model, way, arguments.seconds) for way in ways]
        document["engine"] = [asdict(m) for m in made]
        found += made
    if arguments.only in (None, "server"):
        made = asyncio.run(on_server(arguments.model, arguments.rounds, arguments.seconds))
        document["server"] = [asdict(m) for m in made]
        found += made
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    beside = {m.where: m.mean_ms for m in found if m.way == "share"}
    for m in found:
        ratio = m.mean_ms / beside[m.where] if m.questions else float("nan")
        print(
            f"{m.where:36s} {m.way:8s} {m.questions:4d} answers: mean {m.mean_ms:8.1f} ms "
            f"({ratio:.2f} of share; goal {GOAL}), p50 {m.p50_ms:8.1f}, p90 {m.p90_ms:8.1f}; "
            f"Bob {m.bob_tokens_per_s:.0f} tokens/s"
        )


if __name__ == "__main__":
    main()
