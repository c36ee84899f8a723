"""What may stand in the way of a call, as the gateway asks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dropless.server.endpoints.endpoint import Endpoint
from dropless.server.guardrails.gate import Guardrails
from dropless.server.identity.principal import Principal


class Reservation(Protocol):
    """What a call was admitted with: it may generate `output_tokens`, all its answers together, and
    `headers` tell the client what is left of its limits."""

    @property
    def output_tokens(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    def settle(self, output_tokens: int) -> None:
        """The call has ended and generated so many tokens. Called once."""


class Quotas(Protocol):
    """Decides whether a call may begin."""

    async def admit(
        self, principal: Principal, endpoint: Endpoint, input_tokens: int, max_output_tokens: int
    ) -> Reservation:
        """Raises a DroplessError if a limit is reached."""

    def usage(self, principal: Principal, endpoint: Endpoint) -> list[dict[str, Any]]:
        """The limits that a principal is under, and what is taken of them."""


@dataclass(frozen=True, slots=True)
class Gates:
    """Those of a server; None is an open one."""

    quotas: Quotas | None = None
    guardrails: Guardrails | None = None
