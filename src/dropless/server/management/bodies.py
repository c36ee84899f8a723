"""What management calls are sent: the platform's shapes, and the settings that they become."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dropless.errors import InvalidRequestError
from dropless.server.configuration.endpoint_settings import EndpointSettings
from dropless.server.configuration.problems import problems

_CONFIG_KEYS = ("served_entities", "traffic_config", "system_prompt")
GATEWAY_KEYS = tuple(
    key for key in EndpointSettings.model_fields if key not in ("name", *_CONFIG_KEYS)
)


class _Body(BaseModel):
    """Unknown fields are refused. Fields that mean nothing for models on this machine are taken
    and have no effect."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class EntityBody(_Body):
    """A served entity; `entity_name` is its model, as in a configuration file, and `engine` the
    engine's settings."""

    entity_name: str
    name: str | None = None
    engine: dict[str, Any] | None = None
    entity_version: str | None = None  # without effect, as the following
    workload_size: str | None = None
    workload_type: str | None = None
    scale_to_zero_enabled: bool | None = None


class ConfigBody(_Body):
    """PUT .../config: what the endpoint serves."""

    served_entities: list[EntityBody]
    traffic_config: dict[str, Any] | None = None
    system_prompt: str | None = None

    def document(self) -> dict[str, Any]:
        """As a configuration file has it."""
        entities = [
            _given(model=entity.entity_name, name=entity.name, engine=entity.engine)
            for entity in self.served_entities
        ]
        return _given(
            served_entities=entities,
            traffic_config=self.traffic_config,
            system_prompt=self.system_prompt,
        )


class CreateBody(_Body):
    """POST: a whole endpoint."""

    name: str
    config: ConfigBody
    ai_gateway: dict[str, Any] | None = None
    tags: list[Any] | None = None  # without effect, as the following
    description: str | None = None
    route_optimized: bool | None = None


def created(body: CreateBody) -> EndpointSettings:
    """Raises InvalidRequestError."""
    gateway = _gateway(body.ai_gateway or {})
    return _settings({"name": body.name, **body.config.document(), **gateway})


def with_config(old: EndpointSettings, body: ConfigBody) -> EndpointSettings:
    """The endpoint with another configuration and the same gateway. Raises InvalidRequestError."""
    return _settings({"name": old.name, **body.document(), **_part(old, GATEWAY_KEYS)})


def with_gateway(old: EndpointSettings, gateway: Mapping[str, Any]) -> EndpointSettings:
    """The endpoint with another gateway; what is left out is at its default. Raises
    InvalidRequestError."""
    return _settings({"name": old.name, **_part(old, _CONFIG_KEYS), **_gateway(gateway)})


def _part(settings: EndpointSettings, keys: tuple[str, ...]) -> dict[str, Any]:
    return settings.model_dump(mode="json", include=set(keys), exclude_unset=True)


def _gateway(gateway: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in gateway:
        if key not in GATEWAY_KEYS:
            raise InvalidRequestError(
                f"ai_gateway.{key} is not known; known are {', '.join(GATEWAY_KEYS)}", param=key
            )
    return gateway


def _settings(document: dict[str, Any]) -> EndpointSettings:
    try:
        return EndpointSettings.model_validate_json(json.dumps(document))
    except ValidationError as error:
        sentences = [sentence for _, sentence in problems(error, EndpointSettings)]
        raise InvalidRequestError("; ".join(sentences)) from error


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
