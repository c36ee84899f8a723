"""What a server is made of, put together from its configuration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from dropless.engine.client import AsyncEngineClient
from dropless.server.call import CallObserver
from dropless.server.configuration.settings import Configuration
from dropless.server.endpoints.manager import EndpointManager
from dropless.server.endpoints.registry import EndpointRegistry
from dropless.server.endpoints.store import EndpointStore
from dropless.server.expert_loads import ExpertWatch
from dropless.server.gateway import Gateway
from dropless.server.guardrails.gate import Guardrails
from dropless.server.identity.gatekeeper import Gatekeeper
from dropless.server.inference_rows import InferenceRows
from dropless.server.inference_table import InferenceTables
from dropless.server.live_numbers import LiveNumbers
from dropless.server.quotas.exchange import QuotaExchange
from dropless.server.quotas.quotas import Quotas
from dropless.server.telemetry.metrics import Metrics
from dropless.server.telemetry.traces import Traces
from dropless.server.traffic import Traffic

_TABLES_S = 5.0  # for the last rows to come into their tables; then their writer goes on alone


class Parts:
    """Every room's part, and which knows which. `open` starts and stops those that run."""

    def __init__(self, configuration: Configuration, address: str, file: Path | None) -> None:
        """`address` is where the server listens, `file` where its configuration comes from.

        Raises:
            DroplessError: everybody on the network would be let in, the store of users and tokens
                does not open, inference tables cannot be written, what traces need is not
                installed, or a model, its tokenizer or its template does not load.
        """
        self.settings = configuration.server
        endpoints = list(configuration.endpoints)
        store = None
        if file is not None:
            store = EndpointStore(configuration.data / "endpoints.json")
            store.check_apart(configuration)
            endpoints += store.endpoints.values()
        self.registry = EndpointRegistry(endpoints)
        self.manager = EndpointManager(self.registry, configuration, file, store)
        self.traffic = Traffic()
        self.gatekeeper = Gatekeeper(configuration.identity, configuration.data, address)
        self.numbers = LiveNumbers()
        self.experts = ExpertWatch()
        self.tables = InferenceTables(configuration.tables, configuration.data, self.registry)
        self.rows = InferenceRows(self.tables)
        telemetry = configuration.telemetry
        self.metrics = Metrics(self.registry) if telemetry.metrics else None
        self.traces = None if telemetry.otlp_endpoint is None else Traces(telemetry)
        observers: list[CallObserver] = [self.numbers, self.tables]
        if self.metrics is not None:
            observers.append(self.metrics.calls)
        if self.traces is not None:
            observers.append(self.traces)
        quotas = Quotas()
        self.exchange = QuotaExchange(quotas, lambda: self.gatekeeper.database, self._is_limited)
        self.gateway = Gateway(
            self.registry,
            self.settings.limits,
            observers=observers,
            quotas=quotas,
            guardrails=Guardrails(self.registry.encoder),
            owner_of=lambda principal: self.gatekeeper.secret.cache_owner(principal),
            sharing=configuration.sharing,
        )

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None, None]:
        """While requests are taken. At the end the models are stopped."""
        await self.gatekeeper.start()
        await self.exchange.start()
        watching = [
            asyncio.create_task(self.numbers.watch(self._clients)),
            asyncio.create_task(self.experts.watch(self._clients)),
        ]
        try:
            yield
        finally:
            for task in watching:
                task.cancel()
            await self.manager.stop()
            await self.registry.stop()
            await self.exchange.close()
            await self.rows.close()
            await asyncio.to_thread(self.tables.close, _TABLES_S)
            if self.traces is not None:
                await asyncio.to_thread(self.traces.close)
            await self.gatekeeper.close()

    def _is_limited(self) -> bool:
        return any(endpoint.rate_limits for endpoint in self.registry.list())

    def _clients(self) -> list[AsyncEngineClient]:
        return [engine.client for engine in self.registry.engines.engines]
