"""What the dashboard shows of endpoints, read off the registry as it is at this moment."""

from __future__ import annotations

from pathlib import Path

from dropless.server.endpoints.endpoint import Endpoint, ServedEntity
from dropless.server.endpoints.engines import ModelEngine
from dropless.server.endpoints.registry import EndpointRegistry
from dropless.server.expert_loads import ExpertWatch
from dropless.server.playground.shapes import EndpointState, ServedExperts, ServedState


def endpoint_states(registry: EndpointRegistry) -> list[EndpointState]:
    return [_endpoint(endpoint) for endpoint in registry.list()]


def served_experts(registry: EndpointRegistry, watch: ExpertWatch) -> list[ServedExperts]:
    """Of the served entities that are mixtures."""
    return [
        served
        for endpoint in registry.list()
        for entity in endpoint.entities
        if (served := _experts(endpoint, entity, watch)) is not None
    ]


def _experts(endpoint: Endpoint, entity: ServedEntity, watch: ExpertWatch) -> ServedExperts | None:
    if not isinstance(entity.engine, ModelEngine):
        return None
    client = entity.engine.client
    load = watch.load(client)
    if load is None or client.ready is None:
        return None
    return ServedExperts(
        served_entity=entity.name,
        endpoint=endpoint.name,
        experts_per_token=client.ready.experts_per_token,
        window_s=load.window_s,
        window=load.window,
        total=load.total,
    )


def _name(model: str) -> str:
    """Where a folder lies on the server is nobody's business."""
    return Path(model).name if model.startswith(("/", ".", "~")) else model


def _endpoint(endpoint: Endpoint) -> EndpointState:
    state = "READY" if endpoint.is_ready else "NOT_READY"
    return EndpointState(endpoint.name, state, [_served(entity) for entity in endpoint.entities])


def _served(entity: ServedEntity) -> ServedState:
    engine = entity.engine
    client = engine.client if isinstance(engine, ModelEngine) else None
    return ServedState(
        id=entity.entity_id,
        name=entity.name,
        model=_name(engine.model),
        traffic_percentage=entity.share,
        state=engine.state,
        restarts=engine.restarts,
        ready=None if client is None else client.ready,
        stats=None if client is None else client.stats,
    )
