"""What the way between the HTTP process and the engine process costs, without a model.

Run: python benchmarks/engine_transport.py
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from dropless.engine.client import AsyncEngineClient
from dropless.engine.config import EngineConfig
from dropless.engine.messages import EngineReady, EngineRequest, EngineStats, TokenDelta
from dropless.engine.sampling_params import SamplingParams

RUNNING = 256
TOKENS = 400
PROMPT = list(range(400))
READY = EngineReady("none", "none", 2**20, 2**17, 16, 1, RUNNING, RUNNING, "", "", 0, 0, 0.0)


class Counter:
    """Gives every request one token per step. A step takes `step_s` of sleep, as a GPU's would."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._left: dict[str, int] = {}
        self._steps = 0

    def known_grammar(self, message: EngineRequest) -> object:  # noqa: ARG002 (as the engine's)
        return None

    def compile_grammar(self, message: EngineRequest) -> object:
        raise NotImplementedError

    def add_request(self, request: EngineRequest) -> None:
        self._left[request.request_id] = request.params.max_tokens or 1

    def abort(self, request_ids: list[str]) -> list[TokenDelta]:
        return [TokenDelta(i, [], "abort") for i in request_ids if self._left.pop(i, None)]

    def has_work(self) -> bool:
        return bool(self._left)

    def step(self) -> list[TokenDelta]:
        time.sleep(self._step_s)
        self._steps += 1
        now = time.time()
        deltas = []
        for request_id, left in list(self._left.items()):
            deltas.append(TokenDelta(request_id, [left], scheduled_time=now))
            self._left[request_id] = left - 1
            if left == 1:
                deltas[-1].finish_reason = "length"
                del self._left[request_id]
        return deltas

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._left), steps=self._steps)

    def expert_counts(self) -> list[list[int]]:
        return []

    def close(self) -> None:
        pass


def build_free(
    _config: EngineConfig, _progress: Callable[[str, float], None]
) -> tuple[Counter, EngineReady]:
    """Steps as fast as it can."""
    return Counter(step_s=0.0), READY


def build_paced(
    _config: EngineConfig, _progress: Callable[[str, float], None]
) -> tuple[Counter, EngineReady]:
    """Steps of 10 ms, as a model on a GPU might take."""
    return Counter(step_s=0.010), READY


async def one_request(client: AsyncEngineClient, name: str, tokens: int) -> list[float]:
    """Seconds from the end of each step to its delta's arrival."""
    request = EngineRequest(name, PROMPT, SamplingParams(max_tokens=tokens))
    return [time.time() - delta.scheduled_time async for delta in client.generate(request)]


def percentiles(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    return f"p50 {cuts[49] * 1e3:6.2f} ms, p99 {cuts[98] * 1e3:6.2f} ms"


async def timed(make: Callable[[int], Awaitable[object]], times: int) -> str:
    seconds = []
    for i in range(times):
        start = time.perf_counter()
        await make(i)
        seconds.append(time.perf_counter() - start)
    return percentiles(seconds)


async def steps_done(client: AsyncEngineClient) -> int:
    stats = (await client.health()).stats
    assert stats is not None
    return stats.steps


async def measure_many(client: AsyncEngineClient) -> None:
    steps, start = await steps_done(client), time.perf_counter()
    streams = await asyncio.gather(
        *(one_request(client, f"many-{i}", TOKENS) for i in range(RUNNING))
    )
    elapsed = time.perf_counter() - start
    steps = await steps_done(client) - steps
    late = [seconds for stream in streams for seconds in stream]
    print(f"  end of step to client         {percentiles(late)}")
    print(f"  time per step                 {elapsed / steps * 1e3:.2f} ms")
    print(f"  deltas per second             {len(late) / elapsed:.0f}")


async def measure(builder: str) -> None:
    client = AsyncEngineClient(
        EngineConfig(model_path=Path()), builder=f"engine_transport:{builder}"
    )
    await client.start()
    try:
        if builder == "build_free":
            print("one at a time")
            print(f"  ping                          {await timed(lambda _: client.health(), 500)}")
            latency = await timed(lambda i: one_request(client, f"single-{i}", 1), 500)
            print(f"  request of one token          {latency}")
        print(f"{RUNNING} running, {builder}")
        await measure_many(client)
    finally:
        await client.stop()


def main() -> None:
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    for builder in ("build_free", "build_paced"):
        uvloop.run(measure(builder))


if __name__ == "__main__":
    main()
