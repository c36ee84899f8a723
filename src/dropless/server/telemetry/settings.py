"""The `telemetry` section of the configuration."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from dropless.logs import LogFormat
from dropless.server.configuration.section import Section

_TRACES_PATH = "/v1/traces"


class TelemetrySettings(Section):
    """`metrics` answers GET /metrics. With an `otlp_endpoint`, as `http://localhost:4318`, the
    share `trace_ratio` of the calls is traced and sent there with `otlp_headers`, under
    `service_name`; what prompts and answers say goes with them only if `trace_content` is true.
    `log_format` is for all processes of the server."""

    metrics: bool = True
    otlp_endpoint: str | None = None
    otlp_headers: dict[str, str] = Field(default_factory=dict, repr=False)
    trace_ratio: float = Field(default=1.0, ge=0.0, le=1.0)
    trace_content: bool = False
    service_name: str = Field(default="dropless", min_length=1)
    log_format: LogFormat = "text"

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_url(cls, text: str | None) -> str | None:
        if text is None:
            return None
        try:
            parts = urlsplit(text)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            is_url = False
        if not is_url:
            raise PydanticCustomError(
                "url", "it must be a URL such as http://localhost:4318, not {text}", {"text": text}
            )
        return text

    @property
    def traces_url(self) -> str | None:
        """Where spans are posted: the endpoint itself if it has a path."""
        if self.otlp_endpoint is None:
            return None
        if urlsplit(self.otlp_endpoint).path in ("", "/"):
            return self.otlp_endpoint.rstrip("/") + _TRACES_PATH
        return self.otlp_endpoint
