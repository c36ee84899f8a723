"""The newest calls that match, also those that are not in their table yet."""

from __future__ import annotations

import datetime
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dropless.tables.rows import PayloadRow, day
from dropless.tables.schema import PAYLOAD
from dropless.tables.spool_folder import segments, sessions
from dropless.tables.sql import TableQueries
from dropless.tables.stream_log import StreamLog
from dropless.tables.stream_writer import app_id
from dropless.tables.table_name import TableName
from dropless.tables.table_store import TableStore

_SPOOL_BYTES = 64 * 1024 * 1024  # of a stream, the newest: enough but where a table takes no rows
_BATCH_BYTES = 8 * 1024 * 1024
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True)
class Search:
    """What a call must be. Times are microseconds since 1970; None: whatever.

    Args:
        text: is in the request or the response, in any case.
        since: at this time or later.
        before: earlier than the call of this time and id. To go on after a page: those of its
            last call.
    """

    text: str | None = None
    status_code: int | None = None
    requester: str | None = None
    served_entity_id: str | None = None
    since: int | None = None
    before: tuple[int, str] | None = None

    def matches(self, row: PayloadRow) -> bool:
        if self.text is not None:
            text = self.text.lower()
            if not any(text in body.lower() for body in (row.request, row.response) if body):
                return False
        return (
            self.status_code in (None, row.status_code)
            and self.requester in (None, row.requester)
            and self.served_entity_id in (None, row.served_entity_id)
            and (self.since is None or row.request_time >= self.since)
            and (self.before is None or _age(row) < self.before)
        )

    def condition(self) -> tuple[str, list[object]]:
        """The same as SQL, with its parameters."""
        terms: list[str] = ["true"]
        parameters: list[object] = []
        if self.text is not None:
            terms.append("(contains(lower(request), $1) OR contains(lower(response), $1))")
            parameters.append(self.text.lower())
        for name in ("status_code", "requester", "served_entity_id"):
            value = getattr(self, name)
            if value is not None:
                parameters.append(value)
                terms.append(f"{name} = ${len(parameters)}")
        if self.since is not None:
            parameters.append(_timestamp(self.since))
            terms.append(f"request_time >= ${len(parameters)}")
        if self.before is not None:
            parameters += [_timestamp(self.before[0]), self.before[1]]
            terms.append(
                f"(request_time, databricks_request_id) < "
                f"(${len(parameters) - 1}::TIMESTAMPTZ, ${len(parameters)})"
            )
        return " AND ".join(terms), parameters


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
    return heapq.nlargest(limit, [*found, *new], key=_age)


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
    first = None if wanted.since is None else _date(wanted.since)
    last = None if wanted.before is None else _date(wanted.before[0])
    found: list[PayloadRow] = []
    for date in sorted(days, reverse=True):
        if (last is not None and date > last) or (first is not None and date < first):
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
    time_us = (time - _EPOCH) // datetime.timedelta(microseconds=1)
    columns = {name: values[name] for name in PAYLOAD.schema.names}
    columns |= {
        "request_time": time_us,
        "request_date": day(time_us),
        "logging_error_codes": tuple(values["logging_error_codes"] or ()),  # type: ignore[arg-type]
    }
    return PayloadRow(**columns)  # type: ignore[arg-type]


def _age(row: PayloadRow) -> tuple[int, str]:
    return row.request_time, row.databricks_request_id


def _timestamp(time_us: int) -> datetime.datetime:
    return _EPOCH + datetime.timedelta(microseconds=time_us)


def _date(time_us: int) -> str:
    return _timestamp(time_us).date().isoformat()
