"""Moves one stream into its tables, each row once.

Positions do it. The rows up to a position and a transaction with that position are one commit of a
table; whoever goes on later, after whatever crash, asks the table for its position and leaves out
the rows that it has. Segments are deleted when every table has their rows.
"""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from pathlib import Path

from dropless.tables.records import Record
from dropless.tables.rows import PayloadRow, Row, UsageRow
from dropless.tables.stream_log import Checkpoint, StreamLog
from dropless.tables.table_name import SERVED_ENTITIES, USAGE, TableName
from dropless.tables.table_store import TableStore

logger = logging.getLogger("dropless.tables")

BATCH_BYTES = 16 * 1024 * 1024  # read and committed at once

_Rows = dict[TableName, list[tuple[Row, int]]]


def app_id(stream: Path) -> str:
    """The application that brings this stream's rows, as tables know it."""
    return f"dropless/{stream.parent.name}/{stream.name}"


_payload_table = functools.cache(TableName.parse)


def table_of(row: Row, stream: str) -> TableName:
    """The table of a row: a stream is called like the one of its payload rows."""
    if isinstance(row, PayloadRow):
        return _payload_table(stream)
    return USAGE if isinstance(row, UsageRow) else SERVED_ENTITIES


class StreamWriter:
    """The writer of one stream; there must be one at a time."""

    def __init__(self, folder: Path, store: TableStore) -> None:
        self._log = StreamLog(folder)
        self._store = store
        self._app_id = app_id(folder)
        self._stream = folder.name
        checkpoint = self._log.checkpoint()
        self._position = checkpoint.position
        self._open = {record.call_id: record for record in checkpoint.open}
        self.rows = 0  # committed by this writer

    def pending_bytes(self) -> int:
        return max(0, self._log.end() - self._position)

    def drain(self) -> None:
        """Move all that has ended so far. Raises what the storage raises; then again later."""
        while not self._drain_batch(ended=False):
            pass

    def finish(self) -> None:
        """Move everything and delete the stream: its owner is gone, and the calls that it left
        open get the rows they were opened with."""
        while not self._drain_batch(ended=True):
            pass
        self._log.delete()

    def _drain_batch(self, *, ended: bool) -> bool:
        """Returns whether nothing is left."""
        batch = self._log.read(self._position, BATCH_BYTES, ended=ended)
        still_open = dict(self._open)
        rows: _Rows = defaultdict(list)
        for record, position in batch.records:
            if record.ends:
                still_open.pop(record.call_id, None)
                self._collect(rows, record, position)
            else:
                still_open[record.call_id] = record
        end = batch.end
        if ended and batch.whole:
            end += 1  # the rows of calls that were left open stand after all others
            for record in still_open.values():
                self._collect(rows, record, end)
            still_open.clear()
        self._commit(rows, end)
        self._position = end
        self._open = still_open
        if (ended and batch.whole) or self._log.deletable(end):
            self._log.save(Checkpoint(end, tuple(still_open.values())))
        return batch.whole

    def _collect(self, rows: _Rows, record: Record, position: int) -> None:
        for row in record.rows:
            rows[table_of(row, self._stream)].append((row, position))

    def _commit(self, rows: _Rows, end: int) -> None:
        """Bring the rows to every table, also to those after one that fails."""
        failure: Exception | None = None
        for name, found in rows.items():
            try:
                done = self._store.committed(name, self._app_id)
                new = [row for row, position in found if position > done]
                if new:
                    self._store.commit(name, new, self._app_id, end)
                    self.rows += len(new)
            except Exception as error:  # whatever storage does, the other tables get their rows
                self._store.forget(name)
                failure = failure or _named(error, name)
        if failure is not None:
            raise failure


def _named(error: Exception, name: TableName) -> Exception:
    error.add_note(f"table {name}")
    return error
