"""What calls are counted and timed as: under the platform's names, and those of `dropless_`, which
who knows vLLM finds under `vllm:` there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from dropless.server.call import Call

ENDPOINT, SERVED_ENTITY = "endpoint_name", "served_entity_name"
_LABELS = (ENDPOINT, SERVED_ENTITY)

_LATENCY_MS = (10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000)
_QUEUE_MS = (1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000)
_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30, 60)
_TOKEN_S = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2)
_END_TO_END_S = (0.1, 0.25, 0.5, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 300, 600)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)

_COUNTS = {
    "request_count": "Calls that have ended.",
    "request_4xx_count": "Calls that their caller could have made better, or later.",
    "request_5xx_count": "Calls that the server failed on.",
}
_SPREADS: dict[str, tuple[str, tuple[float, ...]]] = {
    "request_latency_ms": ("From a call's first byte to its answer's last.", _LATENCY_MS),
    "model_queue_time_ms": ("From a call's first byte to its first step.", _QUEUE_MS),
    "dropless_request_queue_time_seconds": (
        "From a call's first byte to its first step.",
        tuple(ms / 1000 for ms in _QUEUE_MS),
    ),
    "dropless_time_to_first_token_seconds": (
        "From a call's first byte to its first token.",
        _FIRST_TOKEN_S,
    ),
    "dropless_time_per_output_token_seconds": (
        "Mean time between the tokens of an answer.",
        _TOKEN_S,
    ),
    "dropless_e2e_request_latency_seconds": (
        "From a call's first byte to its answer's last, of those that succeeded.",
        _END_TO_END_S,
    ),
    "dropless_request_prompt_tokens": ("Tokens of a call's prompts.", _TOKENS),
    "dropless_request_generation_tokens": ("Tokens of a call's answers.", _TOKENS),
}

disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class _Of:
    """One served entity's metrics, by their names."""

    counts: dict[str, Counter]
    spreads: dict[str, Histogram]


class CallMetrics:
    """A CallObserver. `entity_of` gives the endpoint and the served entity of a call by their
    names, "" where there are none: nothing that a caller makes up becomes a label."""

    def __init__(
        self, registry: CollectorRegistry, entity_of: Callable[[Call], tuple[str, str]]
    ) -> None:
        self._entity_of = entity_of
        self._known: dict[tuple[str, str], _Of] = {}
        self._counts = {
            name: Counter(name, text, _LABELS, registry=registry) for name, text in _COUNTS.items()
        }
        self._spreads = {
            name: Histogram(name, text, _LABELS, buckets=buckets, registry=registry)
            for name, (text, buckets) in _SPREADS.items()
        }
        self._statuses = Counter(
            "dropless_requests",
            "Calls that have ended, by HTTP status.",
            (*_LABELS, "status"),
            registry=registry,
        )
        self._success = Counter(
            "dropless_request_success",
            "Answers that have come to their end, by why it was one.",
            (*_LABELS, "finished_reason"),
            registry=registry,
        )
        self._in_flight = Gauge(
            "dropless_requests_in_flight", "Calls that have begun and not ended.", registry=registry
        )

    def began(self, call: Call) -> None:  # noqa: ARG002, the protocol's
        self._in_flight.inc()

    def accepted(self, call: Call) -> None:
        """Counted when it ends."""

    def ended(self, call: Call) -> None:
        self._in_flight.dec()
        labels = self._entity_of(call)
        of = self._of(labels)
        counts, spreads = of.counts, of.spreads
        counts["request_count"].inc()
        self._statuses.labels(*labels, str(call.status_code)).inc()
        latency_s = call.end_time - call.arrival_time
        spreads["request_latency_ms"].observe(latency_s * 1e3)
        timings = call.timings
        if timings is not None:
            spreads["model_queue_time_ms"].observe(timings.queue_ms)
            spreads["dropless_request_queue_time_seconds"].observe(timings.queue_ms / 1e3)
            spreads["dropless_time_to_first_token_seconds"].observe(timings.ttft_ms / 1e3)
        if call.status_code >= 400:
            kind = "4xx" if call.status_code < 500 else "5xx"
            counts[f"request_{kind}_count"].inc()
            return
        spreads["dropless_e2e_request_latency_seconds"].observe(latency_s)
        if call.usage is not None:
            usage = call.usage
            spreads["dropless_request_prompt_tokens"].observe(usage.prompt_tokens)
            spreads["dropless_request_generation_tokens"].observe(usage.completion_tokens)
        reasons = finish_reasons(call)
        for reason in reasons:
            self._success.labels(*labels, reason).inc()
        if timings is not None and timings.decode_tokens_per_s:
            # All answers of the call together make so many tokens a second.
            token_s = max(1, len(reasons)) / timings.decode_tokens_per_s
            spreads["dropless_time_per_output_token_seconds"].observe(token_s)

    def _of(self, labels: tuple[str, str]) -> _Of:
        of = self._known.get(labels)
        if of is None:
            of = self._known[labels] = _Of(
                {name: metric.labels(*labels) for name, metric in self._counts.items()},
                {name: metric.labels(*labels) for name, metric in self._spreads.items()},
            )
        return of


def finish_reasons(call: Call) -> list[str]:
    """Of the answers that have ended, in their order."""
    body: Mapping[str, Any] = call.response_body or {}
    reasons = [choice.get("finish_reason") for choice in body.get("choices", ())]
    return [reason for reason in reasons if reason is not None]
