"""All endpoints of a server, and how they change while calls run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from dropless.encoder.client import EncoderClient
from dropless.encoder.messages import Needs
from dropless.engine.messages import LoadProgress
from dropless.server.configuration.endpoint_settings import EndpointSettings
from dropless.server.endpoints.endpoint import Endpoint, make_endpoint
from dropless.server.endpoints.engines import EnginePool, ModelEngine

logger = logging.getLogger("dropless.server")

OnProgress = Callable[[LoadProgress], None]


class EndpointRegistry:
    """Endpoints by name. Changes come one after the other; a call that has found its endpoint
    keeps it as it was, and the engines of an old version live until its last call has ended."""

    def __init__(self, settings: Iterable[EndpointSettings]) -> None:
        """The endpoints are known at once, and answer when `start` has loaded their models.

        Raises:
            DroplessError: a model is not found, or its tokenizer or template does not load.
        """
        self.engines = EnginePool()
        self.coming: set[str] = set()  # names whose first version is being made
        self._endpoints = {s.name: make_endpoint(s, 1, self.engines) for s in settings}
        self._changing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    def get(self, name: str) -> Endpoint | None:
        return self._endpoints.get(name)

    def list(self) -> list[Endpoint]:
        return list(self._endpoints.values())

    @property
    def encoder(self) -> EncoderClient:
        """What judges and embeds for all endpoints."""
        return self.engines.encoder

    @property
    def encoder_lacks(self) -> bool:
        """Whether some endpoint cannot judge or embed now."""
        return self.encoder.state != "ready" and _needs(self.list()) != Needs()

    async def start(self, on_progress: OnProgress | None = None) -> None:
        """Loads the models one after the other, so that each plans with the memory that those
        before it have left.

        Raises:
            DroplessError: the first that a model fails with.
        """
        async with self._changing:
            await self._prepare_encoder(self.list(), on_progress)
            for endpoint in self.list():
                await _start_engines(endpoint, on_progress)

    async def change(self, wanted: Mapping[str, EndpointSettings | None]) -> None:
        """Add or change these endpoints, and remove those that are None: all of it, or nothing.

        What is new answers when its models are loaded, until then the old does. Calls under way
        stay with what they began with, and end well.

        Raises:
            DroplessError: a model does not load; everything is as it was.
        """
        coming = {name for name, s in wanted.items() if s is not None} - self._endpoints.keys()
        self.coming |= coming
        try:
            async with self._changing:
                await self._change(wanted)
        finally:
            self.coming -= coming

    async def stop(self) -> None:
        """Ends all engines, and what runs on them."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self.engines.stop()

    async def _change(self, wanted: Mapping[str, EndpointSettings | None]) -> None:
        made: list[Endpoint] = []
        try:
            for name, settings in wanted.items():
                old = self._endpoints.get(name)
                if settings is not None and (old is None or old.settings != settings):
                    made.append(await self._make(settings, old))
        except BaseException:
            for endpoint in made:
                await self._release(endpoint)
            raise
        gone = [self._endpoints.pop(name, None) for name, s in wanted.items() if s is None]
        for new in made:
            gone.append(self._endpoints.get(new.name))
            self._endpoints[new.name] = new
        for endpoint in filter(None, gone):
            self._retire(endpoint)

    async def _prepare_encoder(
        self, endpoints: Iterable[Endpoint], on_progress: OnProgress | None
    ) -> None:
        """Load what these endpoints' guardrails and embeddings need, before models plan with the
        memory that is left."""
        needs = _needs(endpoints)
        if needs == Needs():
            return
        if on_progress is not None:
            on_progress(LoadProgress("loading the encoder", 0.0))
        await self.encoder.prepare(needs)

    async def _make(self, settings: EndpointSettings, old: Endpoint | None) -> Endpoint:
        """The next version of an endpoint, with its engines running."""
        version = 1 if old is None else old.version + 1
        new = await asyncio.to_thread(make_endpoint, settings, version, self.engines)
        if old is not None:
            new.created = old.created
        try:
            await self._prepare_encoder([new], None)
            await _start_engines(new, None)
        except BaseException:
            await self._release(new)
            raise
        return new

    def _retire(self, endpoint: Endpoint) -> None:
        task = asyncio.create_task(self._release_when_idle(endpoint))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _release_when_idle(self, endpoint: Endpoint) -> None:
        await endpoint.idle()
        async with self._changing:
            await self._release(endpoint)
        logger.info("endpoint %s: version %d is gone", endpoint.name, endpoint.version)

    async def _release(self, endpoint: Endpoint) -> None:
        for entity in endpoint.entities:
            await self.engines.release(entity.engine)


def _needs(endpoints: Iterable[Endpoint]) -> Needs:
    """What the encoder must have loaded for all of them."""
    needs = Needs()
    for endpoint in endpoints:
        needs = needs.also(endpoint.encoder_needs)
    return needs


async def _start_engines(endpoint: Endpoint, on_progress: OnProgress | None) -> None:
    for entity in endpoint.entities:
        if isinstance(entity.engine, ModelEngine) and entity.engine.state == "stopped":
            await entity.engine.client.start(on_progress)
