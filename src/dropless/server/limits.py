"""How much one client may take of the HTTP process."""

from __future__ import annotations

from pydantic import Field

from dropless.server.configuration.section import Section


class HttpLimits(Section):
    """A client that stops reading is cut off after `stalled_client_s`, one that does not send its
    headers after `head_timeout_s`, or its whole body after `body_timeout_s`. A connection may rest
    between two requests for `keep_alive_s`. On the first signal to stop, running requests get
    `shutdown_grace_s` to finish."""

    max_head_bytes: int = Field(default=32 * 1024, ge=1024)
    head_timeout_s: float = Field(default=10.0, gt=0)
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1)
    body_timeout_s: float = Field(default=60.0, gt=0)
    stalled_client_s: float = Field(default=30.0, gt=0)
    keep_alive_s: float = Field(default=75.0, gt=0)
    shutdown_grace_s: float = Field(default=30.0, ge=0)
