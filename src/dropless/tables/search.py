"""The newest calls that match, also those that are not in their table yet."""

from __future__ import annotations

import datetime
import heapq
from collections.abc import Iterator
from pathlib import Path

from dropless.tables.rows import PayloadRow, day
from dropless.tables.schema import PAYLOAD
from dropless.tables.search_query import EPOCH, Search, age
from dropless.tables.spool_folder import segments, sessions
from dropless.tables.sql import TableQueries
from dropless.tables.stream_log import StreamLog
from dropless.tables.stream_writer import app_id
from dropless.tables.table_name import TableName
from dropless.tables.table_store import TableStore

_SPOOL_BYTES = 64 * 1024 * 1024  # of a stream, the newest: enough but where a table takes no rows
_BATCH_BYTES = 8 * 1024 * 1024


def search(
    store: TableStore, spool: Path | None, name: TableName, wanted: Search, limit: int
) -> list[PayloadRow]:
    """The newest `limit` calls of this payload table that match, the newest first. `spool` has
    those that are on their way.

    Raises:
        TableError: the table cannot be read.
    """
    # The spool first: what leaves it meanwhile is in the table by then.
    waiting = [] if spool is None else list(_waiting(spool, name))
    found: list[PayloadRow] = []
    done: dict[str, int] = {}
    if store.exists(name):
        done = {app: store.committed(name, app) for app, _, _ in waiting}
        found = _in_table(store, name, wanted, limit)
    new = (
        row
        for app, position, row in waiting
        if position > done.get(app, -1) and wanted.matches(row)
    )
    return heapq.nlargest(limit, [*found, *new], key=age)


def _waiting(spool: Path, name: TableName) -> Iterator[tuple[str, int, PayloadRow]]:
    """The rows in all sessions of the spool, each with its application and its position."""
    for session in sessions(spool):
        stream = session / str(name)
        log = StreamLog(stream)
        position = _newest(stream)
        while True:
            try:
                batch = log.read(position, _BATCH_BYTES, ended=False)
            except FileNotFoundError:  # the segment was brought into the table just now
                position = max(position, _newest(stream))
                continue
            for record, end in batch.records:
                for row in record.rows if record.ends else ():
                    if isinstance(row, PayloadRow):
                        yield app_id(stream), end, row
            position = batch.end
            if batch.whole:
                break


def _newest(stream: Path) -> int:
    """The position from which on a stream is read: of its first segment, or of a later one if it
    is very long."""
    found = segments(stream)
    if not found:
        return 0
    last = found[-1].start
    return next(s.start for s in found if last - s.start <= _SPOOL_BYTES)


def _in_table(store: TableStore, name: TableName, wanted: Search, limit: int) -> list[PayloadRow]:
    """From the newest day back, as many days as it takes."""
    queries = TableQueries(store, [name], threads=1, memory="512MB")
    condition, parameters = wanted.condition()
    days = {value["request_date"] for value in store.table(name).partitions()}
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
