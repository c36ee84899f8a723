"""The write-ahead log of a server process: what it knows of its calls, safe from its own death.

Each record is one write to a file, so that the kernel has it when the call goes on: a process that
is killed loses nothing. A thread asks the disk to keep it every `sync_s`: that is what a power cut
can lose. Nothing here waits for a table, and nothing that goes wrong here reaches a request: what
cannot be written is counted and logged.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from dropless.errors import TableError
from dropless.tables.locks import try_lock
from dropless.tables.records import Record, RecordEncoder
from dropless.tables.spool_folder import FORMAT, OWNER_LOCK, segment_path, spooled_bytes

logger = logging.getLogger("dropless.tables")

SEGMENT_BYTES = 8 * 1024 * 1024
_RETRY_S = 1.0  # after a failure; until then records are dropped without trying
_LOG_S = 60.0  # between two log lines that say the same


@dataclass(slots=True)
class SpoolCounters:
    """Since the server started. `error` is the last failure, None once writing works again."""

    records: int = 0
    dropped: int = 0
    error: str | None = None


class Spool:
    """The session of this process. One thread appends; `close` comes from the same.

    Raises:
        TableError: the folder cannot be used.
    """

    def __init__(self, folder: Path, *, max_bytes: int, sync_s: float = 1.0) -> None:
        """`max_bytes` is how much may wait for the tables, of all sessions in the folder; beyond
        that new records are dropped."""
        self.folder = folder
        self.counters = SpoolCounters()
        self._max_bytes = max_bytes
        self._streams: dict[str, Stream] = {}
        self._logged_at = -_LOG_S
        try:
            self.session, self._lock = _new_session(folder)
        except OSError as error:
            raise TableError(
                f"cannot keep the spool of the inference tables in {folder}: {error.strerror}; "
                "choose another folder or make this one writable"
            ) from error
        self._syncer = _Syncer(sync_s)
        self._syncer.start()

    def stream(self, name: str) -> Stream:
        """The stream of this name, always the same one."""
        if name not in self._streams:
            self._streams[name] = Stream(self.session / name, self)
            self._syncer.streams.append(self._streams[name])
        return self._streams[name]

    def close(self) -> None:
        """Everything is on the disk then, and the session can be finished by its writer."""
        self._syncer.finish()
        os.close(self._lock)

    def check_room(self) -> None:
        """Raises TableError: as much waits as may."""
        if spooled_bytes(self.folder) >= self._max_bytes:
            raise TableError(
                f"the spool {self.folder} has its most of {self._max_bytes} bytes: the tables "
                "take no rows, or too slowly; the log says why"
            )

    def retire(self, descriptor: int) -> None:
        """Have a full segment brought to the disk and closed."""
        self._syncer.retired.append(descriptor)

    def dropped(self, why: str) -> None:
        """A record could not be kept."""
        self.counters.dropped += 1
        self.counters.error = why
        now = time.monotonic()
        if now - self._logged_at > _LOG_S:
            self._logged_at = now
            logger.error(
                "inference tables: %s; calls go on without a row (%d so far)",
                why,
                self.counters.dropped,
            )


class Stream:
    """Appends records, in segments that are deleted once their rows are in the tables."""

    def __init__(self, folder: Path, spool: Spool) -> None:
        self.folder = folder
        self.dirty = False  # has bytes that the disk was not asked to keep
        self.created = False  # has a segment of which the disk does not know
        self.descriptor: int | None = None
        self._spool = spool
        self._encoder = RecordEncoder()
        self._start = 0  # position of the open segment
        self._size = 0  # of it, in bytes
        self._retry_at = 0.0
        self._why = ""  # the last failure

    def append(self, record: Record) -> bool:
        """Keep the record. False: it is dropped, and counted so."""
        if self._retry_at and time.monotonic() < self._retry_at:
            self._spool.dropped(self._why)
            return False
        try:
            data = self._encoder.encode(record)
            if self.descriptor is None or self._size >= SEGMENT_BYTES:
                self._open_segment()
            self._write(data)
        except (OSError, TableError) as error:
            self._retry_at = time.monotonic() + _RETRY_S
            self._why = str(error)
            self._spool.dropped(self._why)
            return False
        self._retry_at = 0.0
        self._spool.counters.records += 1
        self._spool.counters.error = None
        return True

    def _open_segment(self) -> None:
        self._spool.check_room()
        self._retire()
        self.folder.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        self.descriptor = os.open(segment_path(self.folder, self._start), flags, 0o600)
        self.created = True

    def _write(self, data: bytearray) -> None:
        assert self.descriptor is not None
        written = os.write(self.descriptor, data)
        if written < len(data):  # the disk is full
            self._cut_off(written)
            raise TableError(f"no space left for the spool {self._spool.folder}")
        self._size += written
        self.dirty = True

    def _cut_off(self, torn: int) -> None:
        """Take the beginning of a record away again. If not even that works, the next record
        begins a new segment: a reader gives up what comes after a torn one."""
        assert self.descriptor is not None
        try:
            os.ftruncate(self.descriptor, self._size)
        except OSError:
            self._size += torn
            self._retire()

    def _retire(self) -> None:
        if self.descriptor is None:
            return
        self._spool.retire(self.descriptor)
        self.descriptor = None
        self._start += self._size
        self._size = 0


class _Syncer(threading.Thread):
    """Brings what was written to the disk, so that the thread that writes never waits for it. It
    alone closes descriptors: a number in use here cannot come to mean another file."""

    def __init__(self, interval_s: float) -> None:
        super().__init__(name="spool-sync", daemon=True)
        self.streams: deque[Stream] = deque()
        self.retired: deque[int] = deque()
        self._interval_s = interval_s
        self._finish = threading.Event()

    def run(self) -> None:
        while not self._finish.wait(self._interval_s):
            self._sync()

    def finish(self) -> None:
        self._finish.set()
        self.join()
        self._sync()
        for stream in self.streams:
            if stream.descriptor is not None:
                os.close(stream.descriptor)
                stream.descriptor = None

    def _sync(self) -> None:
        # An error of the disk shows at the next write too; there it is counted.
        while self.retired:
            descriptor = self.retired.popleft()
            with contextlib.suppress(OSError):
                os.fdatasync(descriptor)
            os.close(descriptor)
        for stream in list(self.streams):
            descriptor_now = stream.descriptor
            if stream.dirty and descriptor_now is not None:
                created, stream.created, stream.dirty = stream.created, False, False
                with contextlib.suppress(OSError):
                    os.fdatasync(descriptor_now)
                    if created:
                        _sync_folder(stream.folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _new_session(folder: Path) -> tuple[Path, int]:
    """A folder of this process's own and its lock. It gets its name when it is locked, so that no
    writer takes it for one that was left."""
    sessions = folder / FORMAT
    for path in (folder, sessions):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
    unborn = sessions / f".{name}"
    unborn.mkdir(mode=0o700)
    lock = try_lock(unborn / OWNER_LOCK)
    assert lock is not None  # nobody else knows its name
    return unborn.rename(sessions / name), lock
