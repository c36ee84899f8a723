"""What a server and the process that searches for it say to each other.

A message is its length in 4 bytes and MessagePack. One question, one answer.
"""

from __future__ import annotations

import struct

import msgspec

from dropless.tables.search_query import Search

LENGTH = struct.Struct("<I")


class Question(msgspec.Struct, frozen=True):
    """The newest `limit` calls of these payload tables that match. `max_characters` is how much of
    a body is wanted."""

    location: str
    storage_options: dict[str, str]
    spool: str
    tables: list[str]
    wanted: Search
    limit: int
    max_characters: int | None


class FoundCall(msgspec.Struct, frozen=True):
    """A row of a payload table, and the tokens that its response tells of. `request_time` in
    seconds since 1970."""

    table: str
    databricks_request_id: str
    client_request_id: str | None
    request_time: float
    request_time_us: int
    status_code: int
    sampling_fraction: float
    execution_duration_ms: int | None
    request: str | None
    response: str | None
    logging_error_codes: list[str]
    served_entity_id: str | None
    requester: str | None
    input_token_count: int | None
    output_token_count: int | None


class Answer(msgspec.Struct, frozen=True):
    """The calls, the newest first; or why there are none."""

    calls: list[FoundCall]
    error: str | None = None


def framed(message: msgspec.Struct) -> bytes:
    data = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(data)) + data
