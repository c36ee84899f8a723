"""Who gets which share of the engines: from the configuration to the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest

from dropless.engine.client import AsyncEngineClient
from dropless.engine.messages import EngineRequest, TokenDelta
from dropless.errors import SettingsError
from dropless.server.configuration.loading import parse
from dropless.server.identity.principal import LOCAL, Principal
from dropless.server.sharing import SharingSettings
from tests.server.in_process import serving
from tests.server.tiny_model import MODEL_ID, tiny_endpoint

FILE = """
sharing:
  default: {weight: 2}
  users:
    ada: {weight: 8}
    nightly: {priority: -5}
  groups:
    research: {weight: 4}
    support: {weight: 3, priority: 1}
    interns: {weight: 0.5, priority: 1}
"""


def sharing() -> SharingSettings:
    return parse(FILE, "example").sharing


@pytest.mark.parametrize(
    ("principal", "weight", "priority"),
    [
        (Principal("eve"), 2, 0),
        (Principal("ada"), 8, 0),
        (Principal("ada", groups=frozenset({"support"})), 8, 0),
        (Principal("nightly", "service_principal"), 1, -5),
        (Principal("bob", groups=frozenset({"research", "unknown"})), 4, 0),
        (Principal("bob", groups=frozenset({"research", "interns"})), 0.5, 1),
        (Principal("bob", groups=frozenset({"support", "interns"})), 3, 1),
    ],
)
def test_own_name_then_the_best_group_then_the_default(
    principal: Principal, weight: float, priority: int
) -> None:
    share = sharing().of(principal)
    assert (share.weight, share.priority) == (weight, priority)


def test_without_configuration_all_are_equal() -> None:
    share = SharingSettings().of(LOCAL)
    assert (share.weight, share.priority) == (1, 0)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [("weight: 0", "weight"), ("weight: 1001", "weight"), ("wieght: 2", "did you mean.*weight")],
)
def test_wrong_shares_are_told(wrong: str, told: str) -> None:
    with pytest.raises(SettingsError, match=f"(?is){told}"):
        parse(f"sharing:\n  users:\n    ada: {{{wrong}}}\n", "example")


def test_share_and_owner_reach_the_engine(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[EngineRequest] = []
    generate = AsyncEngineClient.generate

    async def watched(
        self: AsyncEngineClient, request: EngineRequest
    ) -> AsyncGenerator[TokenDelta, None]:
        seen.append(request)
        async for delta in generate(self, request):
            yield delta

    monkeypatch.setattr(AsyncEngineClient, "generate", watched)
    settings = SharingSettings.model_validate({"users": {"local": {"weight": 3.0, "priority": 2}}})
    body = {"model": MODEL_ID, "prompt": "a", "max_tokens": 1}
    with serving([tiny_endpoint(str(model_folder))], sharing=settings) as server:
        assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 200
        server.run(asyncio.sleep(0))
    [request] = seen
    assert (request.weight, request.priority) == (3.0, 2)
    assert request.owner
    assert "local" not in request.owner, "the engine learns nobody's name"
