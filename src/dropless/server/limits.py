"""How much one client may take of the HTTP process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """A client that stops reading is cut off after `stalled_client_s`, one that does not send its
    whole body after `body_timeout_s`. On the first signal to stop, running requests get
    `shutdown_grace_s` to finish."""

    max_body_bytes: int = 4 * 1024 * 1024
    body_timeout_s: float = 60.0
    stalled_client_s: float = 30.0
    shutdown_grace_s: float = 5.0
