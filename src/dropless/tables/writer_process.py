"""The server's side of its writer process: starts it, starts it again, tells it what changes."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec

from dropless.errors import TableError
from dropless.tables.spool_folder import FORMAT, WRITER_REPORT

logger = logging.getLogger("dropless.tables")

_RESTART_S = 5.0


class WriterConfig(msgspec.Struct, frozen=True):
    """`tables` are those of the server, with their retention in days."""

    spool: str
    session: str  # the name of the server's own session
    location: str
    storage_options: dict[str, str]
    flush_s: float  # rows wait so long for others at most
    tables: dict[str, int | None]


class WriterReport(msgspec.Struct, frozen=True):
    """What a writer says of itself, in its session's folder. `rows` since it started; `error` the
    last failure, None once everything works; `time` in seconds since 1970."""

    time: float
    rows: int
    pending_bytes: int
    error: str | None


class WriterProcess:
    """A process that outlives the server by as long as it takes to bring the last rows in."""

    def __init__(self, config: WriterConfig) -> None:
        self._config = config
        self._closing = threading.Event()
        self._process = self._start()
        self._watcher = threading.Thread(target=self._watch, name="tables-writer", daemon=True)
        self._watcher.start()

    def configure(self, config: WriterConfig) -> None:
        """Tell the writer of this configuration, and every one that comes after it."""
        self._config = config
        self._send(self._process)

    def report(self) -> WriterReport | None:
        """What the writer said last; None before it said anything."""
        path = Path(self._config.spool) / FORMAT / self._config.session / WRITER_REPORT
        try:
            return msgspec.json.decode(path.read_bytes(), type=WriterReport)
        except FileNotFoundError:
            return None

    def close(self, timeout_s: float) -> bool:
        """Have everything brought in; the spool is closed by now. Returns whether that is done: if
        it takes longer, the writer goes on by itself."""
        self._closing.set()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            return self._process.wait(timeout_s) == 0
        except subprocess.TimeoutExpired:
            return False

    def _start(self) -> subprocess.Popen[bytes]:
        # One thread for the storage's work: it should take little of the machine at a time.
        environment = {**os.environ, "TOKIO_WORKER_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "dropless.tables.writer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=environment,
        )
        self._send(process)
        return process

    def _send(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: the next one is told
            process.stdin.write(msgspec.json.encode(self._config) + b"\n")
            process.stdin.flush()

    def _watch(self) -> None:
        while True:
            status = self._process.wait()
            if self._closing.is_set():
                return
            logger.error(
                "inference tables: the writer ended with status %d; rows wait in the spool, and "
                "another writer starts in %g s",
                status,
                _RESTART_S,
            )
            if self._closing.wait(_RESTART_S):
                return
            self._process = self._start()


def check_installed() -> None:
    """Raises TableError: what tables need is not installed."""
    missing = [name for name in ("deltalake", "duckdb") if importlib.util.find_spec(name) is None]
    if missing:
        raise TableError(
            f"inference tables need {' and '.join(missing)}; install them with "
            "pip install 'dropless[tables]', or switch inference tables off"
        )
