"""Endpoints that change while calls hold them, on real engines."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from dropless.errors import DroplessError
from dropless.server.configuration.endpoint_settings import EndpointSettings
from dropless.server.endpoints.registry import EndpointRegistry
from tests.server.tiny_model import tiny_endpoint

T = TypeVar("T")


def endpoint(folder: Path, name: str, **engine: Any) -> EndpointSettings:
    return EndpointSettings.model_validate(tiny_endpoint(str(folder), name, **engine), strict=False)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 250))


def states(registry: EndpointRegistry) -> list[str]:
    return [engine.client.state for engine in registry.engines.engines]


def test_a_new_version_answers_while_the_old_one_ends_its_calls(model_folder: Path) -> None:
    async def work() -> None:
        registry = EndpointRegistry([endpoint(model_folder, "e")])
        await registry.start()
        old = registry.get("e")
        assert old is not None
        with old.held():
            await registry.change({"e": endpoint(model_folder, "e", seed=1)})
            new = registry.get("e")
            assert new is not None
            assert (old.version, new.version) == (1, 2)
            assert new.created == old.created
            await asyncio.sleep(0.05)
            assert states(registry) == ["serving", "serving"]
        while len(registry.engines.engines) > 1:
            await asyncio.sleep(0.01)
        assert new.is_ready
        await registry.change({"e": None})
        assert registry.get("e") is None
        while registry.engines.engines:
            await asyncio.sleep(0.01)
        await registry.stop()  # also what has only begun to stop
        assert new.entities[0].engine.client.pid is None

    run(work())


def test_what_serves_the_same_shares_one_engine_and_keeps_it(model_folder: Path) -> None:
    async def work() -> None:
        registry = EndpointRegistry([endpoint(model_folder, "a")])
        await registry.start()
        [engine] = registry.engines.engines
        pid = engine.client.pid
        other = endpoint(model_folder, "b")
        changed = endpoint(model_folder, "a").model_copy(update={"system_prompt": "Be brief."})
        await registry.change({"a": changed, "b": other})
        await registry.change({"a": None})
        await asyncio.sleep(0.05)
        assert registry.engines.engines == [engine]
        assert (engine.client.state, engine.client.pid) == ("serving", pid)
        await registry.stop()
        assert engine.client.state == "stopped"

    run(work())


def test_what_is_the_same_stays_the_same_version(model_folder: Path) -> None:
    async def work() -> None:
        registry = EndpointRegistry([endpoint(model_folder, "a")])
        before = registry.get("a")
        await registry.change({"a": endpoint(model_folder, "a")})
        assert registry.get("a") is before

    run(work())


def test_a_change_of_which_a_part_fails_changes_nothing(model_folder: Path) -> None:
    async def work() -> None:
        registry = EndpointRegistry([endpoint(model_folder, "a"), endpoint(model_folder, "gone")])
        before = registry.list()
        wanted = {
            "gone": None,
            "new": endpoint(model_folder, "new", seed=1),
            "a": endpoint(model_folder, "a", tensor_parallel_size=3),
        }
        with pytest.raises(DroplessError, match="cannot be shared evenly among 3 ranks"):
            await registry.change(wanted)
        assert registry.list() == before
        [engine] = registry.engines.engines
        assert engine is before[0].entities[0].engine

    run(work())


def test_a_tokenizer_that_is_not_there_is_told_before_any_engine_starts(model_folder: Path) -> None:
    async def work() -> None:
        registry = EndpointRegistry([])
        with pytest.raises(DroplessError, match="/no/tokenizer"):
            await registry.change(
                {"a": endpoint(model_folder, "a", tokenizer_path="/no/tokenizer")}
            )
        assert registry.engines.engines == []

    run(work())
