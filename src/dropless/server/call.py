"""One request to an endpoint, as those know it who watch: tables, metrics, traces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from dropless.server.generation import Timings, Usage
from dropless.server.identity.principal import Principal

Api = Literal["chat", "completions", "embeddings"]


@dataclass(slots=True)
class Call:
    """From a request's first byte to its answer's last. The fields below the line are filled in
    while it is served; whatever happens, `CallObserver.ended` sees them once.

    Times are time.time() seconds.
    """

    request_id: str
    arrival_time: float
    api: Api
    principal: Principal | None  # None: who asked could not be known (401)
    endpoint: str  # the name that was asked for, "" if none was readable

    # ---
    request_body: bytes = b""
    client_request_id: str | None = None
    usage_context: Mapping[str, str] = field(default_factory=dict)
    served_entity_id: str = ""  # who answered, or was to; "" if it did not come so far
    entity_name: str = ""  # the model of that entity
    status_code: int = 0  # 499: the client left first
    response_body: Mapping[str, Any] | None = None  # a stream as the one object it stands for
    error: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    execution_s: float = 0.0  # from the first schedule of its sequences to the last token
    # Name, start and end of what a call went through before its prompt was queued.
    checks: list[tuple[str, float, float]] = field(default_factory=list)
    sent_headers: Mapping[str, str] = field(default_factory=dict)  # of the client, for traces
    answer_headers: dict[str, str] = field(default_factory=dict)  # filled in when it begins
    end_time: float = 0.0

    def summary(self) -> dict[str, Any]:
        """What of it is fit for a log: nothing that was said, and nobody's name."""
        fields: dict[str, Any] = {"api": self.api, "served_entity_id": self.served_entity_id}
        if self.served_entity_id:
            fields["endpoint"] = self.endpoint
        if self.usage is not None:
            fields["prompt_tokens"] = self.usage.prompt_tokens
            fields["completion_tokens"] = self.usage.completion_tokens
            fields["cached_tokens"] = self.usage.cached_tokens
        if self.timings is not None:
            fields["queue_ms"] = self.timings.queue_ms
            fields["ttft_ms"] = self.timings.ttft_ms
        return fields


class CallObserver(Protocol):
    """Is told of every call. It runs on the event loop: it must be quick and may not fail."""

    def began(self, call: Call) -> None:
        """The request's line and headers are here, and who asks is known."""

    def accepted(self, call: Call) -> None:
        """Its body is here and its endpoint known and open to who asks. Not of every call."""

    def ended(self, call: Call) -> None:
        """The last byte is out, or the client has left. Once for each `began`."""
