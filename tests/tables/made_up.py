"""Made-up calls and what a server logs of them."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb

from dropless.tables.records import Record
from dropless.tables.rows import PayloadRow, Row, UsageRow, day
from dropless.tables.table_name import USAGE, TableName
from dropless.tables.table_store import TableStore

TABLE = TableName("main", "default", "tiny_payload")
NOON = 20_000 * 86_400_000_000 + 43_200_000_000  # microseconds; 2024-10-04 12:00 UTC
LOST = 500


def payload(
    call: str,
    *,
    status: int = 200,
    time: int = NOON,
    request: str = '{"messages": [{"role": "user", "content": "Hi"}]}',
    response: str = '{"choices": []}',
    requester: str | None = "ada",
) -> PayloadRow:
    return PayloadRow(
        databricks_request_id=call,
        request_date=day(time),
        client_request_id=None,
        request_time=time,
        status_code=status,
        sampling_fraction=1.0,
        execution_duration_ms=12,
        request=request,
        response=response,
        logging_error_codes=(),
        served_entity_id="tiny-1",
        requester=requester,
    )


def usage(call: str, *, status: int = 200, time: int = NOON) -> UsageRow:
    return UsageRow(
        request_time=time,
        status_code=status,
        requester="ada",
        databricks_request_id=call,
        client_request_id=None,
        served_entity_id="tiny-1",
        input_token_count=3,
        output_token_count=5,
        usage_context={"team": "red"},
    )


def rows(call: str, status: int = 200) -> tuple[Row, ...]:
    return payload(call, status=status), usage(call, status=status)


def opened(call: str) -> Record:
    return Record(call, ends=False, rows=rows(call, LOST))


def ended(call: str) -> Record:
    return Record(call, ends=True, rows=rows(call))


def chat(question: str, answer: str, *before: tuple[str, str]) -> dict[str, str]:
    """Request and response of a chat, after earlier questions and answers."""
    messages = []
    for asked, answered in before:
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answered})
    messages.append({"role": "user", "content": question})
    message = {"role": "assistant", "content": answer, "refusal": None}
    tokens = sum(len(m["content"].split()) for m in messages)
    usage = {"prompt_tokens": tokens, "completion_tokens": 2, "total_tokens": tokens + 2}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return {
        "request": json.dumps({"model": "tiny", "messages": messages}),
        "response": json.dumps({"choices": [choice], "usage": usage}),
    }


def statuses(tables: Path, name: TableName = TABLE) -> dict[str, list[int]]:
    """The status codes of the rows of each call, read from the table's files."""
    files = TableStore(str(tables)).table(name).file_uris()
    found: dict[str, list[int]] = {}
    query = "SELECT databricks_request_id, status_code FROM read_parquet(?)"
    for call, status in duckdb.execute(query, [files]).fetchall() if files else ():
        found.setdefault(call, []).append(status)
    return found


def assert_once(tables: Path, expected: dict[str, int]) -> None:
    """Both tables have one row of each call, with this status, and no other."""
    for name in (TABLE, USAGE):
        assert statuses(tables, name) == {call: [status] for call, status in expected.items()}
