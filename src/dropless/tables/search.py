"""The newest calls that match, also those that are not in their table yet."""

from __future__ import annotations

import datetime
import heapq
from pathlib import Path

from dropless.tables.rows import PayloadRow, day
from dropless.tables.schema import PAYLOAD
from dropless.tables.search_query import EPOCH, Search, age
from dropless.tables.sql import TableQueries
from dropless.tables.table_name import TableName
from dropless.tables.table_store import TableStore
from dropless.tables.waiting import WaitingRows


def search(
    store: TableStore, spool: Path | None, name: TableName, wanted: Search, limit: int
) -> list[PayloadRow]:
    """The newest `limit` calls of this payload table that match, the newest first. `spool` has
    those that are on their way.

    Raises:
        TableError: the table cannot be read.
    """
    waiting = None if spool is None else WaitingRows(spool, name)
    found = _in_table(store, name, wanted, limit) if store.exists(name) else []
    for row in waiting.missing_in(store) if waiting is not None else ():
        if isinstance(row, PayloadRow) and wanted.matches(row):
            found.append(row)
    return heapq.nlargest(limit, found, key=age)


def _in_table(store: TableStore, name: TableName, wanted: Search, limit: int) -> list[PayloadRow]:
    """From the newest day back, as many days as it takes."""
    queries = TableQueries(store, [name], threads=1, memory="512MB")
    condition, parameters = wanted.condition()
    days = {part["request_date"] for part in queries.tables[name].partitions()}
    found: list[PayloadRow] = []
    for date in sorted(days, reverse=True):
        if not wanted.may_be_on(date):
            continue
        result = queries.select(
            f"SELECT * FROM \"{name}\" WHERE request_date = DATE '{date}' AND {condition} "
            f"ORDER BY request_time DESC, databricks_request_id DESC LIMIT {limit - len(found)}",
            parameters,
        )
        found += [_payload_row(dict(zip(result.columns, row, strict=True))) for row in result]
        if len(found) >= limit:
            break
    return found


def _payload_row(values: dict[str, object]) -> PayloadRow:
    """A row of a query as a row of the spool."""
    time: datetime.datetime = values["request_time"]  # type: ignore[assignment]
    time_us = (time - EPOCH) // datetime.timedelta(microseconds=1)
    columns = {name: values[name] for name in PAYLOAD.schema.names}
    columns |= {
        "request_time": time_us,
        "request_date": day(time_us),
        "logging_error_codes": tuple(values["logging_error_codes"] or ()),  # type: ignore[arg-type]
    }
    return PayloadRow(**columns)  # type: ignore[arg-type]
