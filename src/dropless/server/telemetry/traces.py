"""Calls as OpenTelemetry spans: one for the call, and in it one each for what it waited for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from dropless import __version__
from dropless.errors import SettingsError
from dropless.server.call import Api, Call
from dropless.server.telemetry.call_metrics import finish_reasons
from dropless.server.telemetry.settings import TelemetrySettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import Span

_EXPORT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 5.0
_EVERY_MS = 1000.0

_OPERATIONS: dict[Api, str] = {
    "chat": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}
_MLFLOW_TYPES: dict[Api, str] = {
    "chat": "CHAT_MODEL",
    "completions": "LLM",
    "embeddings": "EMBEDDING",
}
# Fields of a request that the semantic conventions of GenAI have attributes for.
_ASKED = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
}

logging.getLogger("opentelemetry").setLevel(logging.ERROR)  # a collector that is down: one line


class Traces:
    """A CallObserver. Spans leave through a thread of their own; what a collector does not take in
    time is lost, and nobody waits for it. `close` sends the last ones."""

    def __init__(self, settings: TelemetrySettings) -> None:
        """Raises SettingsError: the extra that this needs is not installed."""
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise SettingsError(
                "telemetry.otlp_endpoint is set, but OpenTelemetry is not installed: "
                "pip install 'dropless[otel]'"
            ) from error
        self._trace = trace
        self._context = TraceContextTextMapPropagator()
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.trace_ratio)),
            resource=Resource(
                {"service.name": settings.service_name, "service.version": __version__}
            ),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(
            settings.traces_url, headers=settings.otlp_headers, timeout=_EXPORT_TIMEOUT_S
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=_EVERY_MS)
        )
        self._tracer = self._provider.get_tracer("dropless", __version__)
        self._has_content = settings.trace_content
        self._spans: dict[str, Span] = {}

    def began(self, call: Call) -> None:
        parent = self._context.extract(call.sent_headers)
        span = self._tracer.start_span(
            "call", parent, self._trace.SpanKind.SERVER, start_time=_ns(call.arrival_time)
        )
        self._spans[call.request_id] = span  # type: ignore[assignment]
        self._context.inject(call.answer_headers, self._trace.set_span_in_context(span, parent))

    def accepted(self, call: Call) -> None:
        """All is known when it ends."""

    def ended(self, call: Call) -> None:
        span = self._spans.pop(call.request_id)
        if span.is_recording():
            span.update_name(f"{_OPERATIONS[call.api]} {call.endpoint}".rstrip())
            span.set_attributes(dict(self._attributes(call)))
            if call.status_code >= 500:
                span.set_status(self._trace.StatusCode.ERROR)
            context = self._trace.set_span_in_context(span)
            for name, start, end in _stages(call):
                child = self._tracer.start_span(name, context, start_time=_ns(start))
                child.end(_ns(end))
        span.end(_ns(call.end_time))

    def close(self) -> None:
        """Blocks for some seconds at most."""
        self._provider.force_flush(int(_CLOSE_TIMEOUT_S * 1000))
        self._provider.shutdown()

    def _attributes(self, call: Call) -> Iterator[tuple[str, Any]]:
        yield "gen_ai.operation.name", _OPERATIONS[call.api]
        yield "gen_ai.provider.name", "dropless"
        yield "gen_ai.request.model", call.endpoint
        yield "http.response.status_code", call.status_code
        yield "dropless.request_id", call.request_id
        yield "mlflow.spanType", _MLFLOW_TYPES[call.api]
        if call.entity_name:
            yield "gen_ai.response.model", call.entity_name
            yield "dropless.served_entity_id", call.served_entity_id
        if call.status_code >= 400:
            yield "error.type", str(call.status_code)
        asked = _fields(call.request_body)
        for name, attribute in _ASKED.items():
            value = asked.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield attribute, value
        if call.usage is not None:
            usage = call.usage
            yield "gen_ai.usage.input_tokens", usage.prompt_tokens
            yield "gen_ai.usage.output_tokens", usage.completion_tokens
            yield "gen_ai.usage.cache_read.input_tokens", usage.cached_tokens
            tokens = {
                "input_tokens": usage.prompt_tokens,
                "output_tokens": usage.completion_tokens,
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            }
            yield "mlflow.chat.tokenUsage", _json(tokens)
        reasons = finish_reasons(call)
        if reasons:
            yield "gen_ai.response.finish_reasons", reasons
        if call.timings is not None:
            yield "gen_ai.response.time_to_first_chunk", call.timings.ttft_ms / 1e3
        if self._has_content:
            if asked:
                yield "mlflow.spanInputs", _json(asked)
            if call.response_body is not None:
                yield "mlflow.spanOutputs", _json(call.response_body)


def _stages(call: Call) -> Iterator[tuple[str, float, float]]:
    """Name, start and end of what a call went through, time.time() seconds."""
    yield from call.checks
    timings = call.timings
    if timings is None:
        return
    started = call.arrival_time + timings.queue_ms / 1e3
    first_token = max(started, call.arrival_time + timings.ttft_ms / 1e3)
    queued_from = max([call.arrival_time, *(end for _, _, end in call.checks)])
    yield "queue", min(queued_from, started), started
    yield "prefill", started, first_token
    yield "decode", first_token, max(first_token, started + call.execution_s)


def _fields(body: bytes) -> Mapping[str, Any]:
    """Of a request's body, if it is an object at all."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
