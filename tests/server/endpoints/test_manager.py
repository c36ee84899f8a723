"""Changes that take long, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from dropless.errors import ConflictError, DroplessError, ModelNotFoundError
from dropless.server.configuration.settings import Configuration
from dropless.server.endpoints import manager as manager_module
from dropless.server.endpoints.manager import EndpointManager
from dropless.server.endpoints.registry import EndpointRegistry
from tests.server.endpoints.test_registry import endpoint


@pytest.fixture(autouse=True)
def _nothing_is_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager_module, "_PROMPT_S", 0.0)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 250))


def test_an_endpoint_whose_model_does_not_load(model_folder: Path) -> None:
    async def work() -> None:
        registry = EndpointRegistry([])
        manager = EndpointManager(registry, Configuration(), None, None)
        broken = endpoint(model_folder, "e", tensor_parallel_size=3)
        await manager.create(broken)
        assert manager.updates["e"].failure is None
        await asyncio.sleep(0.01)
        assert registry.coming == {"e"}
        for again in (manager.create(broken), manager.update(broken), manager.delete("e")):
            with pytest.raises(ConflictError, match="is being changed"):
                await again
        while manager.updates["e"].failure is None:
            await asyncio.sleep(0.01)
        assert "cannot be shared evenly" in str(manager.updates["e"].failure)
        assert (registry.list(), registry.coming) == ([], set())
        await manager.delete("e")
        assert manager.updates == {}
        with pytest.raises(ModelNotFoundError):
            await manager.delete("e")
        await manager.stop()
        await registry.stop()

    run(work())


def test_a_server_that_stops_gives_up_what_is_under_way(model_folder: Path) -> None:
    async def work() -> None:
        registry = EndpointRegistry([])
        manager = EndpointManager(registry, Configuration(), None, None)
        await manager.create(endpoint(model_folder, "e"))
        while not (registry.engines.engines and registry.engines.engines[0].client.pid):
            await asyncio.sleep(0.01)
        [engine] = registry.engines.engines
        await manager.stop()
        await registry.stop()
        assert (registry.list(), registry.engines.engines, engine.client.pid) == ([], [], None)

    run(work())


def test_without_a_file_there_is_nothing_to_reload() -> None:
    async def work() -> None:
        manager = EndpointManager(EndpointRegistry([]), Configuration(), None, None)
        with pytest.raises(DroplessError, match="without a configuration file"):
            await manager.reload()

    run(work())
