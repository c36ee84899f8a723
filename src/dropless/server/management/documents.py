"""How the platform writes endpoints."""

from __future__ import annotations

import hashlib
from typing import Any

from dropless.engine.client import State
from dropless.server.configuration.endpoint_settings import EndpointSettings, ServedEntitySettings
from dropless.server.endpoints.endpoint import Endpoint, ServedEntity
from dropless.server.endpoints.manager import Update
from dropless.server.identity.principal import Permission, Principal
from dropless.server.management.bodies import GATEWAY_KEYS

_DEPLOYMENT_STATES: dict[State, str] = {
    "serving": "DEPLOYMENT_READY",
    "starting": "DEPLOYMENT_CREATING",
    "restarting": "DEPLOYMENT_RECOVERING",
    "failed": "DEPLOYMENT_FAILED",
    "stopped": "DEPLOYMENT_CREATING",
}
_PERMISSIONS: tuple[Permission, ...] = ("CAN_MANAGE", "CAN_QUERY", "CAN_VIEW")


def endpoint_document(
    name: str, endpoint: Endpoint | None, update: Update | None, principal: Principal
) -> dict[str, Any]:
    """One endpoint; `endpoint` is None while its first version is not there."""
    document: dict[str, Any] = {
        "name": name,
        "id": hashlib.sha256(name.encode()).hexdigest()[:32],
        "state": {
            "ready": "READY" if endpoint is not None and endpoint.is_ready else "NOT_READY",
            "config_update": _update_state(update),
        },
        "permission_level": next(p for p in _PERMISSIONS if principal.can(p, name)),
    }
    if update is not None:
        document["pending_config"] = _config(update.settings)
        document["state"]["config_update_message"] = str(update.failure or "the models load")
    if endpoint is None:
        return document
    return document | {
        "task": endpoint.task,
        "creation_timestamp": int(endpoint.created * 1e3),
        "last_updated_timestamp": int(endpoint.changed * 1e3),
        "config": {
            **_config(endpoint.settings),
            "served_entities": [_entity(entity) for entity in endpoint.entities],
            "config_version": endpoint.version,
        },
        "ai_gateway": gateway_document(endpoint.settings),
    }


def gateway_document(settings: EndpointSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json", include=set(GATEWAY_KEYS))


def _update_state(update: Update | None) -> str:
    if update is None:
        return "NOT_UPDATING"
    return "IN_PROGRESS" if update.failure is None else "UPDATE_FAILED"


def _config(settings: EndpointSettings) -> dict[str, Any]:
    shares = zip(settings.served_entities, settings.shares(), strict=True)
    routes = [
        {"served_entity_name": entity.name, "traffic_percentage": share}
        for entity, share in shares
        if share
    ]
    return {
        "served_entities": [_entity_settings(entity) for entity in settings.served_entities],
        "traffic_config": {"routes": routes},
        "system_prompt": settings.system_prompt,
    }


def _entity_settings(entity: ServedEntitySettings) -> dict[str, Any]:
    return {
        "name": entity.name,
        "entity_name": entity.model,
        "engine": entity.engine.model_dump(mode="json", exclude_unset=True),
    }


def _entity(entity: ServedEntity) -> dict[str, Any]:
    return {
        "id": entity.entity_id,
        **_entity_settings(entity.settings),
        "state": {
            "deployment": _DEPLOYMENT_STATES[entity.engine.state],
            "deployment_state_message": entity.engine.detail,
        },
    }
