"""How calls are spread over served entities, and how long a version is held."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dropless.errors import ModelNotFoundError
from dropless.server.configuration.endpoint_settings import EndpointSettings
from dropless.server.endpoints.endpoint import Endpoint, make_endpoint
from dropless.server.endpoints.engines import EnginePool


def settings(folder: Path, *, fallback: bool = True, **shares: int) -> EndpointSettings:
    """Entities on engines of their own, told apart by their seeds."""
    entities = [
        {"name": name, "model": str(folder), "engine": {"weights": "random", "seed": i}}
        for i, name in enumerate(shares)
    ]
    routes = [
        {"served_entity_name": name, "traffic_percentage": share}
        for name, share in shares.items()
        if share
    ]
    document: dict[str, Any] = {
        "name": "e",
        "served_entities": entities,
        "traffic_config": {"routes": routes},
        "fallback_config": {"enabled": fallback},
    }
    return EndpointSettings.model_validate(document, strict=False)


def made(settings: EndpointSettings, engines: EnginePool | None = None) -> Endpoint:
    return make_endpoint(settings, 1, engines or EnginePool())


def test_calls_are_spread_as_the_shares_say(model_folder: Path) -> None:
    endpoint = made(settings(model_folder, a=70, b=30, c=0))
    chance = random.Random(1)
    firsts = Counter(endpoint.candidates(chance)[0].name for _ in range(10_000))
    assert firsts.keys() == {"a", "b"}
    assert abs(firsts["a"] - 7000) < 4 * (10_000 * 0.7 * 0.3) ** 0.5


def test_the_same_seed_spreads_the_same(model_folder: Path) -> None:
    endpoint = made(settings(model_folder, a=50, b=50))
    one, other = random.Random(7), random.Random(7)
    for _ in range(100):
        assert endpoint.candidates(one) == endpoint.candidates(other)


def test_the_others_stand_by_in_their_order(model_folder: Path) -> None:
    endpoint = made(settings(model_folder, a=0, b=100, c=0))
    assert [entity.name for entity in endpoint.candidates(random.Random(0))] == ["b", "a", "c"]


def test_without_fallback_nobody_stands_by(model_folder: Path) -> None:
    endpoint = made(settings(model_folder, fallback=False, a=0, b=100))
    assert [entity.name for entity in endpoint.candidates(random.Random(0))] == ["b"]


def test_nobody_stands_by_on_the_engine_that_failed(model_folder: Path) -> None:
    given = settings(model_folder, a=100, b=0)
    same = given.served_entities[0].model_copy(update={"name": "b"})
    given = given.model_copy(update={"served_entities": (given.served_entities[0], same)})
    engines = EnginePool()
    endpoint = made(given, engines)
    assert len(engines.engines) == 1
    assert [entity.name for entity in endpoint.candidates(random.Random(0))] == ["a"]


def test_an_entity_is_the_same_for_as_long_as_nothing_of_it_changes(model_folder: Path) -> None:
    first, again, other = (
        [entity.entity_id for entity in made(settings(model_folder, **shares)).entities]
        for shares in ({"a": 70, "b": 30}, {"a": 30, "b": 70}, {"a": 70, "x": 30})
    )
    assert first == again
    assert (other[0] == first[0], other[1] == first[1]) == (True, False)


def test_a_version_is_idle_when_its_last_call_ends(model_folder: Path) -> None:
    async def run() -> list[bool]:
        endpoint = made(settings(model_folder, a=100))
        seen = []
        with endpoint.held():
            idle = asyncio.create_task(endpoint.idle())
            with endpoint.held():
                await asyncio.sleep(0)
                seen.append(idle.done())
            await asyncio.sleep(0)
            seen.append(idle.done())
        await idle
        return seen

    assert asyncio.run(run()) == [False, False]


def test_a_model_that_is_not_found_leaves_no_engine_held(model_folder: Path) -> None:
    engines = EnginePool()
    given = settings(model_folder, a=50, b=50)
    lost = given.served_entities[1].model_copy(update={"model": "no-such-model"})
    given = given.model_copy(update={"served_entities": (given.served_entities[0], lost)})
    with pytest.raises(ModelNotFoundError):
        made(given, engines)
    assert engines.engines == []
