"""What happens when the engine process, or its parent, dies, hangs or cannot start."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil
import pytest

from dropless.engine import client as client_module
from dropless.engine import transport
from dropless.engine.client import AsyncEngineClient, Health, RestartPolicy
from dropless.engine.config import EngineConfig
from dropless.errors import CheckpointError, EngineDeadError, MemoryPlanError, SettingsError

from . import builders
from .traffic import assert_nothing_leaked, collect, make_request, token_ids

MISBEHAVING = "tests.engine.builders:build_misbehaving"
BUILD_ONCE = "tests.engine.builders:build_once"
T = TypeVar("T")


@pytest.fixture(autouse=True)
def _builders_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)


def suspend(pid: int) -> None:
    """Returns when the last of its threads stands still."""
    os.kill(pid, signal.SIGSTOP)
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    deadline = time.monotonic() + 5
    while any(") T " not in (thread / "stat").read_text() for thread in threads):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def run_with(
    config: EngineConfig,
    scenario: Callable[[AsyncEngineClient], Awaitable[T]],
    *,
    builder: str = client_module.DEFAULT_BUILDER,
    policy: RestartPolicy | None = None,
) -> T:
    """Runs a scenario on a started client, and checks that stopping it leaves nothing behind."""

    async def run() -> T:
        client = AsyncEngineClient(config, builder=builder, restart_policy=policy)
        await client.start()
        try:
            return await asyncio.wait_for(scenario(client), 60)
        finally:
            pid = client.pid
            await client.stop()
            assert pid is None or not psutil.pid_exists(pid)

    return asyncio.run(run())


async def wait_for_health(
    client: AsyncEngineClient, wanted: Callable[[Health], bool], timeout_s: float = 30
) -> Health:
    async with asyncio.timeout(timeout_s):
        while not wanted(health := await client.health()):
            await asyncio.sleep(0.02)
        return health


def test_a_killed_engine_is_noticed_replaced_and_serves_again(tiny_config: EngineConfig) -> None:
    async def scenario(client: AsyncEngineClient) -> None:
        tasks = [asyncio.create_task(collect(client, make_request(450))) for _ in range(8)]
        await asyncio.sleep(0.1)
        assert client.pid is not None
        first_pid = client.pid
        killed = time.monotonic()
        os.kill(first_pid, signal.SIGKILL)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert time.monotonic() - killed < 2.0
        assert all(isinstance(outcome, EngineDeadError) for outcome in outcomes)
        assert "SIGKILL" in str(outcomes[0])

        health = await client.health()
        assert (health.ok, health.state) == (False, "restarting")
        with pytest.raises(EngineDeadError, match="restarting") as caught:
            await collect(client, make_request())
        assert caught.value.retry_after_s is not None

        health = await wait_for_health(client, lambda health: health.ok)
        assert health.restarts == 1
        assert client.pid != first_pid
        assert len(token_ids(await collect(client, make_request(5)))) == 5
        await assert_nothing_leaked(client)

    run_with(tiny_config, scenario)


def test_health_tells_of_steps_that_hang_processes_that_are_silent_and_errors_that_restart(
    tiny_config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def a_step_that_hangs(client: AsyncEngineClient) -> None:
        task = asyncio.create_task(collect(client, make_request(prompt=[builders.SLEEP_TOKEN])))
        await asyncio.sleep(0.1)
        assert (await client.health()).ok, "a step is running, though not for long yet"
        with monkeypatch.context() as patch:
            patch.setattr(client_module, "STEP_STALL_S", 0.3)
            health = await wait_for_health(client, lambda health: not health.ok)
            assert "a step has been running" in health.detail
            await task
            assert (await client.health()).ok

    async def a_process_that_does_not_answer(client: AsyncEngineClient) -> None:
        assert client.pid is not None
        suspend(client.pid)
        started = time.monotonic()
        health = await client.health(timeout_s=0.3)
        assert 0.2 < time.monotonic() - started < 1.0
        assert not health.ok
        assert "did not answer" in health.detail
        os.kill(client.pid, signal.SIGCONT)
        await wait_for_health(client, lambda health: health.ok)
        assert client.restarts == 0

    async def an_error_in_a_step(client: AsyncEngineClient) -> None:
        bystander = asyncio.create_task(collect(client, make_request(450)))
        await asyncio.sleep(0.05)
        with pytest.raises(EngineDeadError, match="RuntimeError: a kernel failed"):
            await collect(client, make_request(prompt=[builders.RAISE_TOKEN]))
        with pytest.raises(EngineDeadError):
            await bystander
        await wait_for_health(client, lambda health: health.ok)
        assert len(token_ids(await collect(client, make_request(5)))) == 5

    async def scenario(client: AsyncEngineClient) -> None:
        """One process for all three, for it is what takes time."""
        await a_step_that_hangs(client)
        await a_process_that_does_not_answer(client)
        await an_error_in_a_step(client)

    run_with(tiny_config, scenario, builder=MISBEHAVING)


def test_a_silent_engine_is_replaced_and_sigterm_ends_it_where_interrupts_do_not(
    tiny_config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: AsyncEngineClient) -> None:
        assert client.pid is not None
        with monkeypatch.context() as patch:
            patch.setattr("dropless.engine.transport.PING_INTERVAL_S", 0.05)
            suspend(client.pid)
            health = await wait_for_health(client, lambda health: health.restarts == 1)
        assert "60 pings unanswered" in health.detail
        await wait_for_health(client, lambda health: health.ok)

        os.kill(client.pid, signal.SIGINT)
        assert len(token_ids(await collect(client, make_request(20)))) == 20
        os.kill(client.pid, signal.SIGTERM)
        health = await wait_for_health(client, lambda health: not health.ok)
        assert "exited with status 0" in health.detail

    run_with(tiny_config, scenario)


def test_a_crash_loop_ends_in_failed_with_the_reason(
    tiny_config: EngineConfig, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((tiny_config.model_path / "config.json").read_bytes())
    config = msgspec.structs.replace(tiny_config, model_path=tmp_path)

    async def scenario(client: AsyncEngineClient) -> None:
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        health = await wait_for_health(client, lambda health: health.state == "failed")
        assert health.restarts == 3
        assert "status 3; given up after 3 restarts" in health.detail
        with pytest.raises(EngineDeadError, match="failed") as caught:
            await collect(client, make_request())
        assert caught.value.retry_after_s is None
        assert client.pid is None

    policy = RestartPolicy(max_restarts=3, first_pause_s=0.01)
    run_with(config, scenario, builder=BUILD_ONCE, policy=policy)


def start_error(config: EngineConfig, builder: str = client_module.DEFAULT_BUILDER) -> Exception:
    """What `start` raises. Afterwards the client is failed, with the same reason."""

    async def run() -> Exception:
        client = AsyncEngineClient(config, builder=builder)
        with pytest.raises(Exception) as caught:
            await client.start()
        health = await client.health()
        assert (health.state, health.detail) == ("failed", str(caught.value))
        assert client.pid is None
        return caught.value

    return asyncio.run(run())


def test_a_bad_checkpoint_fails_the_start_with_its_own_error(
    tiny_config: EngineConfig, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{ not json")
    config = msgspec.structs.replace(tiny_config, model_path=tmp_path)
    assert isinstance(start_error(config), CheckpointError)


def test_a_model_that_does_not_fit_fails_the_start_with_its_own_error(
    tiny_config: EngineConfig,
) -> None:
    config = msgspec.structs.replace(tiny_config, kv_cache_bytes=2**60)
    assert isinstance(start_error(config), MemoryPlanError)


def test_an_unknown_builder_fails_the_start(tiny_config: EngineConfig) -> None:
    assert isinstance(start_error(tiny_config, "no.such.module:build"), SettingsError)


def test_cancelling_the_start_leaves_no_process(tiny_config: EngineConfig) -> None:
    async def run() -> None:
        client = AsyncEngineClient(tiny_config)
        task = asyncio.create_task(client.start())
        await asyncio.sleep(0.2)
        pid = client.pid
        assert pid is not None
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert not psutil.pid_exists(pid)
        assert client.state == "stopped"

    asyncio.run(run())


PARENT = """
import asyncio, sys
from pathlib import Path
from dropless.engine import transport
from dropless.engine.client import AsyncEngineClient

async def main():
    client = AsyncEngineClient(transport.read_config(Path(sys.argv[1])))
    await client.start()
    print(client.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_the_engine_dies_with_its_parent(tiny_config: EngineConfig, tmp_path: Path) -> None:
    transport.write_config(tmp_path, tiny_config)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # what a killed parent cannot remove
    )
    assert parent.stdout is not None
    engine = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([engine], timeout=2)
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
