"""One configuration of one endpoint, and the models behind it."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dropless.encoder.messages import Needs
from dropless.errors import SettingsError
from dropless.server.configuration.endpoint_settings import EndpointSettings, ServedEntitySettings
from dropless.server.embeddings.model import is_embedding_model
from dropless.server.endpoints.engines import EnginePool, ModelEngine, ServedModel
from dropless.server.quotas.rate_limit import RateLimit


@dataclass(frozen=True, slots=True)
class ServedEntity:
    """A model that answers for an endpoint. `entity_id` stays as it is for as long as nothing of
    the entity changes, over restarts too."""

    entity_id: str
    settings: ServedEntitySettings
    share: int  # of the endpoint's calls, percent
    engine: ServedModel

    @property
    def name(self) -> str:
        return self.settings.name


class Endpoint:
    """An endpoint as one version of its configuration has it. Calls hold it while they run, so
    that a later version can tell when nobody needs this one any more."""

    def __init__(
        self, settings: EndpointSettings, version: int, entities: tuple[ServedEntity, ...]
    ) -> None:
        self.settings = settings
        self.version = version
        self.entities = entities
        self.created = self.changed = time.time()
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def rate_limits(self) -> tuple[RateLimit, ...]:
        return self.settings.rate_limits

    @property
    def is_ready(self) -> bool:
        """Whether some served entity answers."""
        return any(entity.engine.state == "serving" for entity in self.entities)

    @property
    def max_model_len(self) -> int | None:
        """Tokens that every served entity can take; None while one has never been loaded."""
        lengths = [entity.engine.max_model_len for entity in self.entities]
        return None if None in lengths else min(n for n in lengths if n is not None)

    @property
    def task(self) -> str:
        """What all its served entities can do, as the platform calls it."""
        tasks = {entity.engine.task for entity in self.entities}
        return tasks.pop() if len(tasks) == 1 else "llm/v1/completions"

    @property
    def embeds(self) -> bool:
        """Whether it makes vectors of texts; else it generates texts."""
        return not isinstance(self.entities[0].engine, ModelEngine)

    @property
    def encoder_needs(self) -> Needs:
        """What the encoder process must have loaded for its calls."""
        return self.settings.guardrails.needs().also(Needs(embeddings=self.embeds))

    def candidates(self, chance: random.Random) -> list[ServedEntity]:
        """Who is to answer a call, chosen by the traffic shares; then, with fallback, the others
        in their order, of those that share an engine the first."""
        if len(self.entities) == 1:
            return [self.entities[0]]
        [chosen] = chance.choices(self.entities, [entity.share for entity in self.entities])
        if not self.settings.fallback_config.enabled:
            return [chosen]
        by_engine: dict[int, ServedEntity] = {}
        for entity in (chosen, *self.entities):
            by_engine.setdefault(id(entity.engine), entity)
        return list(by_engine.values())

    @contextmanager
    def held(self) -> Iterator[None]:
        """While a call runs."""
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def idle(self) -> None:
        """Until no call holds it."""
        await self._idle.wait()


def make_endpoint(settings: EndpointSettings, version: int, engines: EnginePool) -> Endpoint:
    """Blocks as `EnginePool.take` does, and raises what it raises; it then holds no engine."""
    _check_embeddings(settings)
    entities: list[ServedEntity] = []
    try:
        for entity, share in zip(settings.served_entities, settings.shares(), strict=True):
            entity_id = _entity_id(settings.name, entity)
            entities.append(ServedEntity(entity_id, entity, share, engines.take(entity)))
    except BaseException:
        for taken in entities:
            engines.drop(taken.engine)
        raise
    return Endpoint(settings, version, tuple(entities))


def _check_embeddings(settings: EndpointSettings) -> None:
    """Raises SettingsError: settings of an endpoint that embeds mean something for others only."""
    models = [entity.model for entity in settings.served_entities]
    embed = [is_embedding_model(model) for model in models]
    if not any(embed):
        return
    if not all(embed):
        raise SettingsError(
            f"endpoint {settings.name!r} has models that embed and models that generate "
            f"({', '.join(models)}); give each kind an endpoint of its own"
        )
    if not settings.guardrails.is_off or settings.system_prompt is not None:
        raise SettingsError(
            f"endpoint {settings.name!r} embeds texts: guardrails and system_prompt are for those "
            "that generate; leave them out"
        )
    if any(entity.engine.model_fields_set for entity in settings.served_entities):
        raise SettingsError(
            f"endpoint {settings.name!r} embeds texts, which no engine does: leave out its engine "
            "settings"
        )


def _entity_id(endpoint: str, entity: ServedEntitySettings) -> str:
    text = f"{endpoint}\n{entity.model_dump_json()}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]
