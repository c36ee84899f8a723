"""An endpoint's `rate_limits`: who may have how much of it in which time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from dropless.server.configuration.section import Section

_Limit = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True, eq=False)
class Meter:
    """Something that is counted over a sliding window. `setting` is its name in RateLimit, `name`
    and `limit_type` are what a refusal calls it."""

    setting: str
    name: str
    limit_type: str
    unit: Literal["queries", "tokens"]
    span_s: int
    counts_input: bool = False  # tokens of prompts
    counts_output: bool = False  # tokens of answers

    def amount(self, input_tokens: int, output_tokens: int) -> int:
        """What a request takes of it."""
        if self.unit == "queries":
            return 1
        return input_tokens * self.counts_input + output_tokens * self.counts_output


METERS = (
    Meter("qps", "QPS", "queries_per_second", "queries", 1),
    Meter("calls", "QPM", "queries_per_minute", "queries", 60),
    Meter("qph", "QPH", "queries_per_hour", "queries", 3600),
    Meter("itpm", "ITPM", "input_tokens_per_minute", "tokens", 60, counts_input=True),
    Meter("otpm", "OTPM", "output_tokens_per_minute", "tokens", 60, counts_output=True),
    Meter("tokens", "TPM", "tokens_per_minute", "tokens", 60, True, True),
)


class RateLimit(Section):
    """One entry of `rate_limits`. `key` says whom it limits: the `endpoint` as a whole, each `user`
    or `service_principal` (the one called `principal`, or all that have no entry of their own), or
    all members together of the `user_group` called `principal`.

    `calls` and `tokens` are per `renewal_period`; `itpm` and `otpm` are input and output tokens per
    minute, `qph` and `qps` queries per hour and second.
    """

    key: Literal["endpoint", "user", "service_principal", "user_group"] = "endpoint"
    principal: str | None = None
    renewal_period: Literal["minute"] = "minute"
    calls: _Limit | None = None
    tokens: _Limit | None = None
    itpm: _Limit | None = None
    otpm: _Limit | None = None
    qph: _Limit | None = None
    qps: _Limit | None = None

    @model_validator(mode="after")
    def _limits_someone(self) -> RateLimit:
        if not self.limits():
            names = ", ".join(meter.setting for meter in METERS)
            raise PydanticCustomError("limit", f"a rate limit needs one of {names}")
        if self.key == "user_group" and self.principal is None:
            raise PydanticCustomError("limit", "principal must name the group that is limited")
        if self.key == "endpoint" and self.principal is not None:
            raise PydanticCustomError("limit", "the key endpoint limits all; leave principal out")
        return self

    def limits(self) -> dict[Meter, int]:
        found = ((meter, getattr(self, meter.setting)) for meter in METERS)
        return {meter: limit for meter, limit in found if limit is not None}
