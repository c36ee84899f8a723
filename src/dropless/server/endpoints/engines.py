"""Engine processes with the text side of their model, shared by all who serve the same."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from dropless.checkpoints.resolve import resolve
from dropless.encoder.client import EncoderClient
from dropless.engine.client import AsyncEngineClient, State
from dropless.engine.config import EngineConfig
from dropless.engine.messages import EngineReady
from dropless.errors import EngineDeadError
from dropless.server.configuration.endpoint_settings import ServedEntitySettings
from dropless.server.embeddings.model import EmbeddingModel, is_embedding_model
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

    @property
    def task(self) -> str:
        """As the platform calls it."""
        return "llm/v1/completions" if self.template.source is None else "llm/v1/chat"

    @property
    def state(self) -> State:
        return self.client.state

    @property
    def detail(self) -> str:
        return self.client.detail

    @property
    def restarts(self) -> int:
        return self.client.restarts

    @property
    def max_model_len(self) -> int | None:
        """None if the model has never been loaded so far."""
        return None if self.client.ready is None else self.client.ready.max_model_len

    def ready(self) -> EngineReady:
        """Raises EngineDeadError: the model has never been loaded so far."""
        if self.client.ready is None:
            raise EngineDeadError("the model is still loading", retry_after_s=1.0)
        return self.client.ready


ServedModel = ModelEngine | EmbeddingModel


@dataclass(slots=True)
class _Shared:
    engine: ModelEngine
    holders: int = 0


class EnginePool:
    """One engine for each model and its settings: endpoints that serve the same share it, and a
    new configuration of an endpoint keeps the engines that it does not change."""

    def __init__(self) -> None:
        self.encoder = EncoderClient()  # computes for all embedding models
        self._shared: dict[EngineConfig, _Shared] = {}
        self._stopping: set[asyncio.Task[None]] = set()

    @property
    def engines(self) -> list[ModelEngine]:
        return [shared.engine for shared in self._shared.values()]

    def take(self, entity: ServedEntitySettings) -> ServedModel:
        """The engine of this entity, started or not; held until `release`. Blocks for as long as
        it takes to fetch the model's files and to read its tokenizer.

        Raises:
            DroplessError: the model is not found, cannot be fetched, or its text side not read.
        """
        if is_embedding_model(entity.model):
            return EmbeddingModel(entity.model, self.encoder)
        random = entity.engine.weights == "random"
        config = entity.engine.config(resolve(entity.model, allow_shapes=random), entity.model)
        shared = self._shared.get(config)
        if shared is None:
            shared = self._shared[config] = _Shared(ModelEngine(config))
        shared.holders += 1
        return shared.engine

    async def release(self, engine: ServedModel) -> None:
        """Stops the engine if nobody else holds it, whether or not the caller is cancelled."""
        if isinstance(engine, ModelEngine) and self.drop(engine):
            stopping = asyncio.create_task(engine.client.stop())
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopping.discard)
            await asyncio.shield(stopping)

    def drop(self, engine: ServedModel) -> bool:
        """Hold it no more. True if nobody does: the caller stops it if it was started."""
        if not isinstance(engine, ModelEngine):
            return False  # it has no process of its own
        shared = self._shared[engine.config]
        shared.holders -= 1
        if shared.holders:
            return False
        del self._shared[engine.config]
        return True

    async def stop(self) -> None:
        """Ends every engine process, and the encoder."""
        for engine in self.engines:
            await engine.client.stop()
        if self._stopping:
            await asyncio.wait(self._stopping)
        await self.encoder.stop()
