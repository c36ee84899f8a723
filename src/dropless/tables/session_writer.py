"""Moves the sessions of a spool into tables: the one that goes on, and those that were left."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from dropless.tables.locks import try_lock
from dropless.tables.spool_folder import (
    OWNER_LOCK,
    WRITER_LOCK,
    sessions,
    streams,
)
from dropless.tables.stream_writer import StreamWriter
from dropless.tables.table_store import TableStore

logger = logging.getLogger("dropless.tables")


class SessionWriter:
    """The writer of one session, which it has locked.

    Attributes:
        rows: that it brought into tables.
        error: the last failure; None once everything works.
    """

    def __init__(self, session: Path, store: TableStore) -> None:
        self.session = session
        self.rows = 0
        self.error: str | None = None
        self._store = store
        self._writers: dict[str, StreamWriter] = {}

    def drain(self) -> bool:
        """Move what has ended. Returns whether everything worked; what did not is logged and
        tried again the next time."""
        return self._for_each_stream(ended=False)

    def finish(self) -> bool:
        """Move everything and delete the session; its owner is gone. Returns whether that is
        done; else again later."""
        if not self._for_each_stream(ended=True):
            return False
        shutil.rmtree(self.session, ignore_errors=True)  # locks and reports
        return True

    def pending_bytes(self) -> int:
        """How much of the session is not in the tables yet."""
        return sum(self._writer(stream).pending_bytes() for stream in streams(self.session))

    def _for_each_stream(self, *, ended: bool) -> bool:
        failures = []
        for stream in streams(self.session):
            try:
                self._move(stream, ended=ended)
            except Exception as error:  # whatever storage does, the other streams go on
                why = ", ".join([*getattr(error, "__notes__", ()), f"{error}"])
                logger.warning("inference tables: %s; tried again later", why)
                failures.append(why)
        self.error = failures[0] if failures else None
        return not failures

    def _move(self, stream: Path, *, ended: bool) -> None:
        writer = self._writer(stream)
        before = writer.rows
        try:
            writer.finish() if ended else writer.drain()
        finally:
            self.rows += writer.rows - before
        if ended:
            del self._writers[stream.name]

    def _writer(self, stream: Path) -> StreamWriter:
        if stream.name not in self._writers:
            self._writers[stream.name] = StreamWriter(stream, self._store)
        return self._writers[stream.name]


def lock_as_writer(session: Path) -> int | None:
    """Become the session's writer. None: it has one, or is gone."""
    return try_lock(session / WRITER_LOCK)


def finish_left_sessions(spool: Path, store: TableStore) -> int:
    """Move what killed servers have left, if nobody else is at it. Returns the rows moved."""
    rows = 0
    for session in sessions(spool):
        owner = try_lock(session / OWNER_LOCK)
        if owner is None:
            continue
        writer = lock_as_writer(session)
        if writer is not None:
            left = SessionWriter(session, store)
            left.finish()
            rows += left.rows
            os.close(writer)
        os.close(owner)
    return rows
