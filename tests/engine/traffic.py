"""Requests for a tiny engine, and what comes back."""

from __future__ import annotations

import asyncio
import itertools

from dropless.engine.client import AsyncEngineClient
from dropless.engine.messages import EngineRequest, EngineStats, TokenDelta
from dropless.engine.sampling_params import SamplingParams

_ids = (f"request-{n}" for n in itertools.count())


def make_request(tokens: int = 8, *, prompt: list[int] | None = None) -> EngineRequest:
    """A greedy request that ends after exactly `tokens` tokens."""
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    return EngineRequest(next(_ids), prompt or [5, 6, 7, 8, 9], params)


async def collect(client: AsyncEngineClient, request: EngineRequest) -> list[TokenDelta]:
    return [delta async for delta in client.generate(request)]


def token_ids(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.new_token_ids]


async def stats_when_idle(client: AsyncEngineClient) -> EngineStats:
    """The stats as soon as nothing runs or waits."""
    async with asyncio.timeout(10):
        while True:
            stats = (await client.health()).stats
            if stats is not None and stats.running == 0 and stats.waiting == 0:
                return stats
            await asyncio.sleep(0.01)


async def assert_nothing_leaked(client: AsyncEngineClient) -> None:
    stats = await stats_when_idle(client)
    assert stats.kv_blocks_free == stats.kv_blocks_total > 0
