"""The sections of one endpoint: what it serves, and how calls are spread over it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from pydantic import AfterValidator, Field, create_model, model_validator
from pydantic_core import PydanticCustomError

from dropless.engine.config import EngineConfig
from dropless.errors import SettingsError
from dropless.server.configuration.section import Section
from dropless.server.guardrails.settings import GuardrailSettings
from dropless.server.quotas.rate_limit import RateLimit
from dropless.tables.settings import InferenceTableSettings, UsageTrackingSettings

MAX_NAME_LENGTH = 255


def _checked_name(name: str) -> str:
    if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable() or name != name.strip():
        raise PydanticCustomError(
            "name",
            "a name has 1 to {most} printable characters, no space at its ends",
            {"most": MAX_NAME_LENGTH},
        )
    return name


Name = Annotated[str, AfterValidator(_checked_name)]


class _EngineSettings(Section):
    """The fields of EngineConfig but those that the served entity itself gives."""

    weights: Literal["checkpoint", "random"] = "checkpoint"  # the others follow from EngineConfig

    @model_validator(mode="after")
    def _check(self) -> _EngineSettings:
        try:
            self.config(Path(), "")
        except SettingsError as error:
            raise PydanticCustomError("setting", "{why}", {"why": str(error)}) from error
        return self

    def config(self, model_path: Path, model_id: str) -> EngineConfig:
        """The engine's own settings for the model at this path."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return EngineConfig(model_path=model_path, model_id=model_id, **values)


_GIVEN_BY_THE_ENTITY = ("model_path", "model_id")
if TYPE_CHECKING:
    EngineSettings = _EngineSettings
else:
    EngineSettings = create_model(
        "EngineSettings",
        __base__=_EngineSettings,
        **{
            field.name: (field.type, field.default)
            for field in msgspec.structs.fields(EngineConfig)
            if field.name not in _GIVEN_BY_THE_ENTITY
        },
    )


class ServedEntitySettings(Section):
    """One model behind an endpoint. `model` is a folder, a GGUF file, a hub id or a catalogue
    name; the entity is called like it unless it has a name of its own."""

    model: str = Field(min_length=1)
    name: Name = Field(default_factory=lambda given: given.get("model", ""))
    engine: EngineSettings = EngineSettings()


class Route(Section):
    served_entity_name: str
    traffic_percentage: int = Field(ge=0, le=100)


class TrafficSettings(Section):
    """Which share of the calls goes to which served entity. The shares sum to 100."""

    routes: tuple[Route, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sum_is_100(self) -> TrafficSettings:
        total = sum(route.traffic_percentage for route in self.routes)
        if total != 100:
            raise PydanticCustomError(
                "traffic",
                "the routes' traffic_percentage sum to {total}, not 100",
                {"total": total},
            )
        return self


class FallbackSettings(Section):
    """Whether a call goes to the next served entity if the chosen one fails before its first
    token."""

    enabled: bool = True


class EndpointSettings(Section):
    """One endpoint. With several served entities, `traffic_config` says how calls are spread; one
    that no route names answers only for those that fail. `system_prompt` begins every chat that
    has no system message of its own."""

    name: Name
    served_entities: tuple[ServedEntitySettings, ...] = Field(min_length=1)
    traffic_config: TrafficSettings | None = None
    system_prompt: str | None = None
    fallback_config: FallbackSettings = FallbackSettings()
    guardrails: GuardrailSettings = GuardrailSettings()
    rate_limits: tuple[RateLimit, ...] = ()
    inference_table_config: InferenceTableSettings | None = None
    usage_tracking_config: UsageTrackingSettings = UsageTrackingSettings()

    @model_validator(mode="after")
    def _check_entities(self) -> EndpointSettings:
        names = [entity.name for entity in self.served_entities]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise PydanticCustomError(
                "entities", "two served entities are called {name}", {"name": repr(repeated)}
            )
        if self.traffic_config is None:
            if len(names) > 1:
                raise PydanticCustomError(
                    "traffic",
                    "there are {count} served entities; traffic_config must say how calls are "
                    "spread over them",
                    {"count": len(names)},
                )
            return self
        routed = [route.served_entity_name for route in self.traffic_config.routes]
        for name in routed:
            if name not in names or routed.count(name) > 1:
                raise PydanticCustomError(
                    "traffic",
                    "traffic_config must route to each served entity at most once, not to {name}; "
                    "there are {names}",
                    {"name": repr(name), "names": ", ".join(names)},
                )
        return self

    def shares(self) -> list[int]:
        """The traffic percentage of each served entity, in their order."""
        if self.traffic_config is None:
            return [100]
        routes = {r.served_entity_name: r.traffic_percentage for r in self.traffic_config.routes}
        return [routes.get(entity.name, 0) for entity in self.served_entities]
