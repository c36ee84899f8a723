"""How a server knows, at every request, whether what it remembers of the store still holds."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Connection

from dropless.server.identity.database import Database

_QUERY = "SELECT revision FROM store_state"


class RevisionWatch:
    """Reads the store's revision, with one connection of its own.

    From a SQLite file that takes a few microseconds, waits for no lock, and is done where it is
    asked. A server database is asked from a thread, and those who ask while a question is on its
    way share the next one: not that one, for its answer may be older than a change they must see.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._local = database.engine.dialect.name == "sqlite"
        self._errors = (database.engine.dialect.loaded_dbapi.Error,)
        self._connection: Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="token-store-revision")
        self._running: asyncio.Task[int] | None = None
        self._next: asyncio.Task[int] | None = None

    async def current(self) -> int:
        """The revision at some moment after the call. Raises TokenStoreError."""
        if self._local:
            return self._read()
        if self._next is None:
            self._next = asyncio.create_task(self._ask(self._running))
        return await self._database.in_time(asyncio.shield(self._next))

    async def _ask(self, before: asyncio.Task[int] | None) -> int:
        if before is not None:
            await asyncio.wait((before,))
        self._running, self._next = self._next, None
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read)

    def _read(self) -> int:
        try:
            if self._connection is not None:
                return _query(self._connection)
        except self._errors:
            self._drop()  # it may be that the server was restarted: a new connection will tell
        with self._database.answers():
            self._connection = self._connect()
        try:
            return _query(self._connection)
        except self._errors as error:
            self._drop()
            raise self._database.failure(error) from error

    def _connect(self) -> Connection:
        # Without a transaction, in which a later query would see what the first one saw.
        return self._database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        self._thread.shutdown()
        self._drop()


def _query(connection: Connection) -> int:
    cursor = connection.connection.cursor()  # the driver's: a tenth of the time
    cursor.execute(_QUERY)
    [(revision,)] = cursor.fetchall()
    return int(revision)
