"""The client against a real engine process with a tiny model."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from dropless.engine.client import AsyncEngineClient
from dropless.engine.config import EngineConfig
from dropless.engine.messages import EngineStats, LoadProgress, TokenDelta
from dropless.errors import ContextLengthError, EngineDeadError, EngineError, InvalidRequestError

from .traffic import assert_nothing_leaked, collect, make_request, stats_when_idle, token_ids


@pytest.fixture(scope="module")
def client(loop: asyncio.Runner, tiny_config: EngineConfig) -> Iterator[AsyncEngineClient]:
    client = AsyncEngineClient(tiny_config)
    loop.run(client.start())
    yield client
    loop.run(client.stop())


def test_ready_describes_the_engine(client: AsyncEngineClient, tiny_config: EngineConfig) -> None:
    assert client.ready is not None
    assert client.ready.vocab_size == 512
    assert client.ready.num_blocks == 128
    assert client.ready.max_running_requests == tiny_config.max_running_requests


def test_a_request_goes_round(client: AsyncEngineClient, loop: asyncio.Runner) -> None:
    first = loop.run(collect(client, make_request(8)))
    again = loop.run(collect(client, make_request(8)))
    assert len(token_ids(first)) == 8
    assert [delta.finish_reason for delta in first] == [None] * (len(first) - 1) + ["length"]
    assert token_ids(first) == token_ids(again)


def test_concurrent_requests_get_their_own_tokens(
    client: AsyncEngineClient, loop: asyncio.Runner
) -> None:
    prompts = [[5 + i, 6, 7 + i] for i in range(100)]

    async def run() -> list[list[TokenDelta]]:
        return await asyncio.gather(
            *(collect(client, make_request(3 + i % 20, prompt=p)) for i, p in enumerate(prompts))
        )

    for i, deltas in enumerate(loop.run(run())):
        assert len({delta.request_id for delta in deltas}) == 1
        assert len(token_ids(deltas)) == 3 + i % 20
    loop.run(assert_nothing_leaked(client))


def test_closing_the_iterator_aborts_in_the_engine(
    client: AsyncEngineClient, loop: asyncio.Runner
) -> None:
    async def run() -> tuple[EngineStats, EngineStats]:
        before = await stats_when_idle(client)
        async with aclosing(client.generate(make_request(400))) as stream:
            await anext(aiter(stream))
        return before, await stats_when_idle(client)

    before, after = loop.run(run())
    assert after.generated_tokens - before.generated_tokens < 400
    assert after.kv_blocks_free == after.kv_blocks_total


def test_cancelling_the_task_aborts_in_the_engine(
    client: AsyncEngineClient, loop: asyncio.Runner
) -> None:
    async def run() -> tuple[EngineStats, EngineStats]:
        before = await stats_when_idle(client)
        task = asyncio.create_task(collect(client, make_request(400)))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        return before, await stats_when_idle(client)

    before, after = loop.run(run())
    assert after.generated_tokens - before.generated_tokens < 400
    assert after.kv_blocks_free == after.kv_blocks_total


def test_abort_by_id_ends_the_stream_with_abort(
    client: AsyncEngineClient, loop: asyncio.Runner
) -> None:
    async def run() -> list[TokenDelta]:
        request = make_request(400)
        task = asyncio.create_task(collect(client, request))
        await asyncio.sleep(0.05)
        await client.abort([request.request_id, "unknown"])
        return await task

    assert loop.run(run())[-1].finish_reason == "abort"
    loop.run(assert_nothing_leaked(client))


def test_refusals_arrive_as_the_engine_raised_them(
    client: AsyncEngineClient, loop: asyncio.Runner
) -> None:
    with pytest.raises(ContextLengthError, match="512") as caught:
        loop.run(collect(client, make_request(prompt=[5] * 600)))
    assert caught.value.code == "context_length_exceeded"
    assert len(token_ids(loop.run(collect(client, make_request(4))))) == 4


def test_a_request_id_in_use_is_refused(client: AsyncEngineClient, loop: asyncio.Runner) -> None:
    async def run() -> None:
        request = make_request(200)
        async with aclosing(client.generate(request)) as stream:
            await anext(aiter(stream))
            with pytest.raises(InvalidRequestError, match="in use"):
                await collect(client, request)
            assert (await anext(aiter(stream))).new_token_ids  # the first one goes on

    loop.run(run())


def test_a_message_beyond_the_limit_is_refused_before_it_is_sent(
    client: AsyncEngineClient, loop: asyncio.Runner
) -> None:
    with pytest.raises(InvalidRequestError, match="bytes"):
        loop.run(collect(client, make_request(prompt=[100_000] * 4_000_000)))
    assert loop.run(client.health()).ok


def test_a_slow_consumer_does_not_hold_up_others(
    client: AsyncEngineClient, loop: asyncio.Runner
) -> None:
    async def run() -> tuple[list[TokenDelta], list[TokenDelta]]:
        async with aclosing(client.generate(make_request(300))) as slow:
            first = await anext(aiter(slow))
            others = await asyncio.gather(*(collect(client, make_request(50)) for _ in range(8)))
            assert all(len(token_ids(deltas)) == 50 for deltas in others)
            await stats_when_idle(client)  # the engine has finished the slow one as well
            return [first], [delta async for delta in slow]

    first, rest = loop.run(run())
    assert len(token_ids(first)) + len(token_ids(rest)) == 300


def test_health_asks_the_engine(client: AsyncEngineClient, loop: asyncio.Runner) -> None:
    health = loop.run(client.health())
    assert (health.ok, health.state, health.restarts) == (True, "serving", 0)
    assert health.stats is not None
    assert health.stats.kv_blocks_total == 128


def test_500_requests_with_random_aborts_leak_nothing(
    client: AsyncEngineClient, loop: asyncio.Runner
) -> None:
    choose = random.Random(7)

    async def one(tokens: int, prompt: list[int], stop_after: int | None) -> bool:
        """Whether it ended by itself with every token."""
        received = 0
        async with aclosing(client.generate(make_request(tokens, prompt=prompt))) as stream:
            async for delta in stream:
                received += len(delta.new_token_ids)
                if stop_after is not None and received >= stop_after:
                    return False
        return received == tokens

    async def run() -> tuple[list[bool], list[bool]]:
        finished, expected = [], []
        for _ in range(5):
            tasks = []
            for _ in range(100):
                tokens = choose.randint(1, 30)
                stop_after = choose.choice([None, choose.randint(1, 40)])
                prompt = [choose.randint(5, 500) for _ in range(choose.randint(1, 60))]
                tasks.append(asyncio.create_task(one(tokens, prompt, stop_after)))
                expected.append(stop_after is None or stop_after > tokens)
                if choose.random() < 0.1:
                    await asyncio.sleep(0.001)
            finished += await asyncio.gather(*tasks)
        return finished, expected

    finished, expected = loop.run(run())
    assert finished == expected
    loop.run(assert_nothing_leaked(client))


def test_a_client_that_is_not_started_says_so(
    tiny_config: EngineConfig, loop: asyncio.Runner
) -> None:
    idle = AsyncEngineClient(tiny_config)
    assert loop.run(idle.health()).state == "stopped"
    with pytest.raises(EngineDeadError, match="not started"):
        loop.run(collect(idle, make_request()))
    loop.run(idle.stop())


def test_starting_twice_is_refused(client: AsyncEngineClient, loop: asyncio.Runner) -> None:
    with pytest.raises(EngineError, match="serving already"):
        loop.run(client.start())


def test_stop_ends_what_runs_and_start_works_again(
    tiny_config: EngineConfig, loop: asyncio.Runner
) -> None:
    client = AsyncEngineClient(tiny_config)
    progress: list[LoadProgress] = []

    async def run() -> None:
        await client.start(progress.append)
        task = asyncio.create_task(collect(client, make_request(400)))
        await asyncio.sleep(0.05)
        await client.stop()
        with pytest.raises(EngineDeadError, match="stopped"):
            await task
        assert (await client.health()).state == "stopped"
        await client.start()
        assert len(token_ids(await collect(client, make_request(4)))) == 4
        await client.stop()

    loop.run(run())
    assert progress
    assert all(0.0 <= step.fraction <= 1.0 for step in progress)
