"""The writer process of a server: brings rows from the spool into the tables, and keeps these tidy.

Run as `python -m dropless.tables.writer`. Each line of its standard input is a `WriterConfig`; the
last one counts. When the input ends, the server has stopped or was killed: the writer moves what is
left and ends too. It has a low priority: rows can wait, requests cannot.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from dropless.errors import TableError
from dropless.tables.locks import try_lock
from dropless.tables.maintenance import keep_tidy
from dropless.tables.session_writer import SessionWriter, finish_left_sessions, lock_as_writer
from dropless.tables.spool_folder import FORMAT, MAINTENANCE_LOCK, OWNER_LOCK, WRITER_REPORT
from dropless.tables.stream_writer import BATCH_BYTES
from dropless.tables.table_name import TableName
from dropless.tables.table_store import TableStore
from dropless.tables.writer_process import WriterConfig, WriterReport

logger = logging.getLogger("dropless.tables")

NICENESS = 10
_LOOK_S = 1.0  # how often it looks at the spool
_OWNER_GONE_S = 5.0  # how long it waits for the lock of a server whose input has ended
_LEFT_SESSIONS_S = 60.0
_COMPACT_S = 300.0


class Writer:
    """Works for one server."""

    def __init__(self, config: WriterConfig) -> None:
        self._config = config
        self._spool = Path(config.spool)
        self._session = self._spool / FORMAT / config.session
        self._store = TableStore(config.location, config.storage_options)
        self._own = SessionWriter(self._session, self._store)
        self._flushed_at = time.monotonic()
        self._chores = (
            _Chore(self._finish_left_sessions, _LEFT_SESSIONS_S, first_after_s=0),
            _Chore(self._maintain, _COMPACT_S, first_after_s=60),
        )

    def run(self, lines: ConfigLines) -> None:
        """Until the server is gone and its session is in the tables, or can wait for the next
        server of this spool."""
        lock = lock_as_writer(self._session)
        if lock is None:
            raise TableError(f"{self._session} has a writer already, or is gone")
        self._report()
        self._make_tables()
        while not lines.ended:
            changed = lines.wait(_LOOK_S)
            if changed is not None:
                self._config = changed
                self._make_tables()
            self._flush_if_due()
            for chore in self._chores:
                chore.do_if_due()
        self._finish()

    def _make_tables(self) -> None:
        """So that they can be asked before they have rows. What fails now fails again, and is
        told, when rows come."""
        for table in self._config.tables:
            with contextlib.suppress(Exception):
                self._store.make(TableName.parse(table))

    def _flush_if_due(self) -> None:
        pending = self._own.pending_bytes()
        waited = time.monotonic() - self._flushed_at >= self._config.flush_s
        many = pending >= BATCH_BYTES and self._own.error is None  # a failure is no hurry
        if pending and (waited or many):
            self._own.drain()
            self._flushed_at = time.monotonic()
            self._report()

    def _finish(self) -> None:
        deadline = time.monotonic() + _OWNER_GONE_S
        while (owner := try_lock(self._session / OWNER_LOCK)) is None:
            if time.monotonic() > deadline:
                logger.error("inference tables: %s is still in use", self._session)
                return
            time.sleep(0.05)
        self._own.finish()
        os.close(owner)

    def _finish_left_sessions(self) -> None:
        rows = finish_left_sessions(self._spool, self._store)
        if rows:
            logger.info("inference tables: %d rows of a server that was killed are saved", rows)

    def _maintain(self) -> None:
        """One writer of a spool does it for all."""
        lock = try_lock(self._spool / MAINTENANCE_LOCK)
        if lock is None:
            return
        try:
            keep_tidy(self._store, self._config.tables, lock)
        finally:
            os.close(lock)

    def _report(self) -> None:
        report = WriterReport(
            time.time(), self._own.rows, self._own.pending_bytes(), self._own.error
        )
        unfinished = self._session / f"{WRITER_REPORT}.new"
        with contextlib.suppress(OSError):  # of a full disk others tell
            unfinished.write_bytes(msgspec.json.encode(report))
            unfinished.replace(self._session / WRITER_REPORT)


class _Chore:
    """Something to do now and then."""

    def __init__(self, do: Callable[[], None], every_s: float, *, first_after_s: float) -> None:
        self._do = do
        self._every_s = every_s
        self._due_at = time.monotonic() + first_after_s

    def do_if_due(self) -> None:
        if time.monotonic() >= self._due_at:
            self._do()
            self._due_at = time.monotonic() + self._every_s


class ConfigLines:
    """The configurations that come in through a pipe. `ended`: no more will come."""

    def __init__(self, descriptor: int) -> None:
        self.ended = False
        self._descriptor = descriptor
        self._unread = b""

    def wait(self, seconds: float) -> WriterConfig | None:
        """A new configuration, if one comes before the time is over."""
        ready, _, _ = select.select([self._descriptor], [], [], seconds)
        if not ready:
            return None
        data = os.read(self._descriptor, 65536)
        self.ended = not data
        *lines, self._unread = (self._unread + data).split(b"\n")
        return msgspec.json.decode(lines[-1], type=WriterConfig) if lines else None


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the server, which closes the pipe
    os.nice(NICENESS)
    lines = ConfigLines(sys.stdin.fileno())
    config = None
    while config is None and not lines.ended:
        config = lines.wait(_LOOK_S)
    if config is not None:
        Writer(config).run(lines)


if __name__ == "__main__":
    main()
