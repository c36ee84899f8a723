"""What the dashboard asks of the rooms around it, and the JSON that its page gets."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from dropless.engine.messages import EngineReady, EngineStats
from dropless.server.expert_loads import Counts
from dropless.server.live_numbers import Percentiles, Sample, UserUsage


class ServedState(msgspec.Struct, frozen=True):
    """A served entity. `ready` and `stats` are None until its engine has told them."""

    id: str
    name: str
    model: str
    traffic_percentage: int
    state: str  # of AsyncEngineClient
    restarts: int
    ready: EngineReady | None
    stats: EngineStats | None


class EndpointState(msgspec.Struct, frozen=True):
    name: str
    state: str
    served_entities: list[ServedState]


class LiveBody(msgspec.Struct, frozen=True):
    """GET /live. Times are time.time() seconds. `latencies` by window (1m, 5m, 60m) and figure
    (ttft_ms, tpot_ms, e2e_ms); `totals` has gauges as of now and counters since `started`."""

    time: float
    started: float
    samples: list[Sample]
    latencies: dict[str, dict[str, Percentiles]]
    totals: EngineStats
    endpoints: list[EndpointState]


class UsageBody(msgspec.Struct, frozen=True):
    """GET /usage: the last hour, the heaviest user first."""

    users: list[UserUsage]
    statuses: dict[str, int]
    everybody: bool  # False: the asking user only


class ServedExperts(msgspec.Struct, frozen=True):
    """The expert load of one served entity; layers and experts in the model's order."""

    served_entity: str
    endpoint: str
    experts_per_token: int
    window_s: float
    window: Counts
    total: Counts


class ExpertsBody(msgspec.Struct, frozen=True):
    """GET /expert-load: of mixtures of experts only."""

    served_entities: list[ServedExperts]


class Rows(Protocol):
    """A searchable inference table."""

    async def search(
        self,
        *,
        endpoint: str | None,
        text: str | None,
        requester: str | None,
        status: str | None,
        since: float | None,
        until: float | None,
        cursor: str | None,
        limit: int,
    ) -> dict[str, Any]:
        """{"rows": [...], "cursor": str | None}, newest first, bodies cut short. `text` is a
        substring of request or response, `status` is "200" or a class like "4xx"."""

    async def row(self, databricks_request_id: str) -> dict[str, Any] | None:
        """One row with its whole request and response."""
