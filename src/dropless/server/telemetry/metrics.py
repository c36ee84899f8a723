"""Prometheus text: of the server, and of one endpoint as the platform has it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dropless.engine.messages import EngineReady, EngineStats
from dropless.server.call import Call
from dropless.server.endpoints.endpoint import ServedEntity
from dropless.server.endpoints.engines import ModelEngine
from dropless.server.endpoints.registry import EndpointRegistry
from dropless.server.telemetry.call_metrics import ENDPOINT, SERVED_ENTITY, CallMetrics
from dropless.server.telemetry.machine import Machine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ANSWER_S = 1.0  # engines that take longer are left as they were heard of last
_OWN = "dropless_"

_GAUGES = {
    "num_requests_running": ("running", "Requests that have a row in the engine."),
    "num_requests_waiting": ("waiting", "Requests that wait for one."),
}
_COUNTERS = {
    "prefix_cache_queries": ("prompt_tokens", "Prompt tokens looked for in the prefix cache."),
    "prefix_cache_hits": ("prefix_hit_tokens", "Prompt tokens found in the prefix cache."),
    "num_preemptions": ("preemptions", "Requests that lost their row and are computed again."),
    "prompt_tokens": ("prompt_tokens", "Tokens of prompts."),
    "generation_tokens": ("generated_tokens", "Tokens generated."),
    "engine_steps": ("steps", "Steps of the engine."),
}


@dataclass(frozen=True, slots=True)
class _Engine:
    """What an engine said last, under the first served entity that it answers for."""

    labels: tuple[str, str]
    stats: EngineStats
    ready: EngineReady
    restarts: int
    expert_counts: list[list[int]]


class Metrics:
    """Those of calls, which are told of as an observer of calls, and of engines and the machine,
    which are asked when somebody wants to know."""

    def __init__(self, endpoints: EndpointRegistry) -> None:
        self._endpoints = endpoints
        self._registry = CollectorRegistry()
        self._engines = _EngineCollector()
        self.calls = CallMetrics(self._registry, self._entity_of)
        self._registry.register(self._engines)
        self._registry.register(_MachineCollector(Machine()))
        self._one_at_a_time = asyncio.Lock()

    async def text(self) -> bytes:
        """All of it."""
        return await self._text(self._registry)

    async def text_of(self, endpoint: str) -> bytes:
        """The platform's metrics of this endpoint, and of the machine."""
        return await self._text(_OfEndpoint(self._registry, endpoint))

    async def _text(self, source: Collector) -> bytes:
        async with self._one_at_a_time:
            self._engines.engines = await self._ask()
            return await asyncio.to_thread(generate_latest, source)

    async def _ask(self) -> list[_Engine]:
        """Every engine, once."""
        found: dict[int, tuple[str, ServedEntity]] = {}
        for endpoint in self._endpoints.list():
            for entity in endpoint.entities:
                found.setdefault(id(entity.engine), (endpoint.name, entity))
        asked = await asyncio.gather(*(_ask(*each) for each in found.values()))
        return [engine for engine in asked if engine is not None]

    def _entity_of(self, call: Call) -> tuple[str, str]:
        endpoint = self._endpoints.get(call.endpoint)
        if endpoint is None:
            return "", ""
        for entity in endpoint.entities:
            if entity.entity_id == call.served_entity_id:
                return endpoint.name, entity.name
        return endpoint.name, ""


async def _ask(endpoint: str, entity: ServedEntity) -> _Engine | None:
    """None before it has ever served, and of what has no engine of its own."""
    if not isinstance(entity.engine, ModelEngine):
        return None
    client = entity.engine.client
    if client.ready is None:
        return None
    counts: list[list[int]] | None = []
    if client.ready.experts_per_token > 1:
        _, counts = await asyncio.gather(client.health(_ANSWER_S), client.expert_counts(_ANSWER_S))
    else:
        await client.health(_ANSWER_S)
    stats = client.stats or EngineStats()
    labels = (endpoint, entity.name)
    return _Engine(labels, stats, client.ready, client.restarts, counts or [])


class _EngineCollector(Collector):
    def __init__(self) -> None:
        self.engines: list[_Engine] = []

    def collect(self) -> Iterator[Metric]:
        labels = [ENDPOINT, SERVED_ENTITY]
        places = GaugeMetricFamily(
            "provisioned_concurrent_requests_total",
            "Requests that can be computed at the same time.",
            labels=labels,
        )
        used = GaugeMetricFamily(
            f"{_OWN}kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", labels=labels
        )
        restarts = CounterMetricFamily(
            f"{_OWN}engine_restarts", "Engine processes that died and came back.", labels=labels
        )
        experts = CounterMetricFamily(
            f"{_OWN}expert_tokens",
            "Tokens that chose an expert, in one step a second.",
            labels=[*labels, "layer", "expert"],
        )
        for engine in self.engines:
            blocks = engine.stats.kv_blocks_total
            places.add_metric(engine.labels, engine.ready.max_running_requests)
            used.add_metric(
                engine.labels, 1 - engine.stats.kv_blocks_free / blocks if blocks else 0
            )
            restarts.add_metric(engine.labels, engine.restarts)
            for layer, counts in enumerate(engine.expert_counts):
                for expert, count in enumerate(counts):
                    experts.add_metric((*engine.labels, str(layer), str(expert)), count)
        yield from (places, used, restarts, experts)
        for name, (field, text) in _GAUGES.items():
            yield self._add_all(GaugeMetricFamily(_OWN + name, text, labels=labels), field)
        for name, (field, text) in _COUNTERS.items():
            yield self._add_all(CounterMetricFamily(_OWN + name, text, labels=labels), field)

    def _add_all(
        self, family: GaugeMetricFamily | CounterMetricFamily, field: str
    ) -> GaugeMetricFamily | CounterMetricFamily:
        for engine in self.engines:
            family.add_metric(engine.labels, getattr(engine.stats, field))
        return family


class _MachineCollector(Collector):
    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "cpu_usage_percentage", "Of all processor cores.", self._machine.cpu()
        )
        yield GaugeMetricFamily("mem_usage_percentage", "Of the memory.", self._machine.memory())
        gpus = self._machine.gpus()
        if not gpus:
            return
        busy = GaugeMetricFamily("gpu_usage_percentage", "Of each GPU.", labels=["gpu"])
        memory = GaugeMetricFamily(
            "gpu_mem_usage_percentage", "Of each GPU's memory.", labels=["gpu"]
        )
        for number, gpu in enumerate(gpus):
            busy.add_metric([f"gpu{number}"], gpu.busy)
            memory.add_metric([f"gpu{number}"], gpu.memory)
        yield from (busy, memory)


class _OfEndpoint(Collector):
    """Of another collector what has the platform's names and belongs to one endpoint or to none."""

    def __init__(self, whole: Collector, endpoint: str) -> None:
        self._whole = whole
        self._endpoint = endpoint

    def collect(self) -> Iterator[Metric]:
        for family in self._whole.collect():
            if family.name.startswith(_OWN):
                continue
            own = Metric(family.name, family.documentation, family.type)
            own.samples = [
                sample
                for sample in family.samples
                if sample.labels.get(ENDPOINT, self._endpoint) == self._endpoint
            ]
            if own.samples:
                yield own
