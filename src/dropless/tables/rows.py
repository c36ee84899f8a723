"""The rows of the three kinds of table, as they travel from the server to a table.

A field is a column, in the table's order; `schema.py` says its Delta type. Dates are days and times
are microseconds since 1970-01-01 in UTC.
"""

from __future__ import annotations

import zlib

import msgspec

MAX_LOGGED_BYTES = 1024 * 1024  # of a request or a response; a larger one is left out
MAX_REQUEST_SIZE_EXCEEDED = "MAX_REQUEST_SIZE_EXCEEDED"
MAX_RESPONSE_SIZE_EXCEEDED = "MAX_RESPONSE_SIZE_EXCEEDED"

US_PER_S = 1_000_000
_US_PER_DAY = 86_400 * US_PER_S


class PayloadRow(msgspec.Struct, frozen=True, array_like=True, tag="payload", gc=False):
    """One call of an endpoint: what was asked and what was answered."""

    databricks_request_id: str
    request_date: int
    client_request_id: str | None
    request_time: int
    status_code: int
    sampling_fraction: float
    execution_duration_ms: int | None  # of the model; None if it is not known
    request: str | None
    response: str | None
    logging_error_codes: tuple[str, ...]
    served_entity_id: str | None
    requester: str | None


class UsageRow(msgspec.Struct, frozen=True, array_like=True, tag="usage"):
    """One call of any endpoint: how many tokens it took."""

    request_time: int
    status_code: int
    requester: str | None
    databricks_request_id: str
    client_request_id: str | None
    served_entity_id: str | None
    input_token_count: int | None
    output_token_count: int | None
    usage_context: dict[str, str] | None


class ServedEntityRow(msgspec.Struct, frozen=True, array_like=True, tag="served_entity", gc=False):
    """What a `served_entity_id` stands for, from `change_time` on."""

    served_entity_id: str
    endpoint_name: str
    entity_name: str
    entity_version: str | None
    endpoint_config_version: int
    change_time: int


Row = PayloadRow | UsageRow | ServedEntityRow


def microseconds(time_s: float) -> int:
    """Of a time in seconds since 1970."""
    return round(time_s * US_PER_S)


def day(time_us: int) -> int:
    return time_us // _US_PER_DAY


def sampled(request_id: str, fraction: float) -> bool:
    """Whether the request is in the sample: always the same answer for the same id, and a sample
    of a smaller fraction is part of that of a larger one."""
    return zlib.crc32(request_id.encode()) < fraction * 2**32


def logged(
    body: bytes | None, code: str, max_bytes: int = MAX_LOGGED_BYTES
) -> tuple[str | None, tuple[str, ...]]:
    """A body as a table keeps it and the error codes for it: text, whatever its bytes are, or
    nothing and `code` if it is too large."""
    if body is None:
        return None, ()
    if len(body) > max_bytes:
        return None, (code,)
    return body.decode(errors="replace"), ()
