"""What /health says of one engine, or of several as one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from dropless.engine.client import Health
from dropless.engine.messages import EngineStats
from dropless.server.endpoints.engines import ModelEngine

HEALTH_TIMEOUT_S = 1.0


async def health_of(engines: Sequence[ModelEngine]) -> dict[str, Any]:
    """Whether every engine answers in time: `status` is "ok" only then. The words on top are those
    of the first engine that is not well, the figures the sum over all."""
    each = await asyncio.gather(*(engine.client.health(HEALTH_TIMEOUT_S) for engine in engines))
    unwell = [health for health in each if not health.ok]
    worst = (unwell or each or [Health(True, "serving", "no endpoints", None, 0)])[0]
    stats = [health.stats for health in each if health.stats is not None]
    return {
        "status": "unavailable" if unwell else "ok",
        "state": worst.state,
        "detail": worst.detail,
        "restarts": sum(health.restarts for health in each),
        "stats": _sum(stats) if stats else None,
        "engines": [
            {
                "model": engine.model,
                "state": health.state,
                "detail": health.detail,
                "restarts": health.restarts,
                "stats": None if health.stats is None else msgspec.to_builtins(health.stats),
            }
            for engine, health in zip(engines, each, strict=True)
        ],
    }


def _sum(stats: Sequence[EngineStats]) -> dict[str, float]:
    """Counts added up; of the times of the last step, the longest."""
    return {
        name: (max if name.startswith("last_") else sum)(getattr(each, name) for each in stats)
        for name in EngineStats.__struct_fields__
    }
