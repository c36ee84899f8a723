"""Engine processes with the text side of their model, shared by all who serve the same."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from dropless.checkpoints.resolve import resolve
from dropless.engine.client import AsyncEngineClient
from dropless.engine.config import EngineConfig
from dropless.engine.messages import EngineReady
from dropless.errors import EngineDeadError
from dropless.server.configuration.endpoint_settings import ServedEntitySettings
from dropless.server.logprobs import TokenNames
from dropless.server.prompts import PromptEncoder
from dropless.text.chat_template import load_chat_template
from dropless.text.tokenizer import load_tokenizer


class ModelEngine:
    """One model in an engine process of its own. Reads tokenizer and template when it is made;
    `client.start` does the rest.

    Raises:
        DroplessError: the tokenizer or the template does not load.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.client = AsyncEngineClient(config)
        self.tokenizer = load_tokenizer(config.tokenizer_path or config.model_path)
        self.template = load_chat_template(config.model_path, self.tokenizer)
        self.encoder = PromptEncoder(self.tokenizer, self.template)
        self.names = TokenNames(self.tokenizer)

    @property
    def model(self) -> str:
        return self.config.model_id

    def ready(self) -> EngineReady:
        """Raises EngineDeadError: the model has never been loaded so far."""
        if self.client.ready is None:
            raise EngineDeadError("the model is still loading", retry_after_s=1.0)
        return self.client.ready


@dataclass(slots=True)
class _Shared:
    engine: ModelEngine
    holders: int = 0


class EnginePool:
    """One engine for each model and its settings: endpoints that serve the same share it, and a
    new configuration of an endpoint keeps the engines that it does not change."""

    def __init__(self) -> None:
        self._shared: dict[EngineConfig, _Shared] = {}
        self._stopping: set[asyncio.Task[None]] = set()

    @property
    def engines(self) -> list[ModelEngine]:
        return [shared.engine for shared in self._shared.values()]

    def take(self, entity: ServedEntitySettings) -> ModelEngine:
        """The engine of this entity, started or not; held until `release`. Blocks for as long as
        it takes to fetch the model's files and to read its tokenizer.

        Raises:
            DroplessError: the model is not found, cannot be fetched, or its text side not read.
        """
        random = entity.engine.weights == "random"
        config = entity.engine.config(resolve(entity.model, allow_shapes=random), entity.model)
        shared = self._shared.get(config)
        if shared is None:
            shared = self._shared[config] = _Shared(ModelEngine(config))
        shared.holders += 1
        return shared.engine

    async def release(self, engine: ModelEngine) -> None:
        """Stops the engine if nobody else holds it, whether or not the caller is cancelled."""
        if self.drop(engine):
            stopping = asyncio.create_task(engine.client.stop())
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopping.discard)
            await asyncio.shield(stopping)

    def drop(self, engine: ModelEngine) -> bool:
        """Hold it no more. True if nobody does: the caller stops it if it was started."""
        shared = self._shared[engine.config]
        shared.holders -= 1
        if shared.holders:
            return False
        del self._shared[engine.config]
        return True

    async def stop(self) -> None:
        """Ends every engine process."""
        for engine in self.engines:
            await engine.client.stop()
        if self._stopping:
            await asyncio.wait(self._stopping)
