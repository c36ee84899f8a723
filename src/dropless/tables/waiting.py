"""Rows that are on their way into a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dropless.tables.rows import Row
from dropless.tables.spool_folder import segments, sessions, streams
from dropless.tables.stream_log import StreamLog
from dropless.tables.stream_writer import app_id, table_of
from dropless.tables.table_name import TableName
from dropless.tables.table_store import TableStore

_SPOOL_BYTES = 64 * 1024 * 1024  # of a stream, the newest: enough but where a table takes no rows
_BATCH_BYTES = 8 * 1024 * 1024


class WaitingRows:
    """The rows of calls that have ended, in all sessions of a spool, as they are now.

    To see each row once: make this first, then look at the table, then ask for what it lacks. What
    leaves the spool meanwhile is in the table by then.
    """

    def __init__(self, spool: Path, name: TableName) -> None:
        self._name = name
        self._rows = list(_ended(spool, name))

    def missing_in(self, store: TableStore) -> list[Row]:
        """Those that the table, as the store has just seen it, does not have."""
        apps = {app for app, _, _ in self._rows}
        done = {app: store.seen(self._name, app) for app in apps}
        return [row for app, position, row in self._rows if position > done[app]]


def _ended(spool: Path, name: TableName) -> Iterator[tuple[str, int, Row]]:
    """Each row with its application and its position."""
    for session in sessions(spool):
        for stream in streams(session):
            log = StreamLog(stream)
            position = _newest(stream)
            while True:
                try:
                    batch = log.read(position, _BATCH_BYTES, ended=False)
                except FileNotFoundError:  # the segment was brought into its tables just now
                    position = max(position, _newest(stream))
                    continue
                for record, end in batch.records:
                    for row in record.rows if record.ends else ():
                        if table_of(row, stream.name) == name:
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
