"""The database of users and tokens: opened, made, checked. SQLite in a file, or PostgreSQL."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, create_engine, event, select, text, update
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateIndex, CreateTable

from dropless.errors import InvalidRequestError, SettingsError, TokenStoreError
from dropless.server.identity.schema import VERSION, Base, StoreState

PATIENCE_S = 5  # with a connection, a statement, another writer of a SQLite file
_POOL_SIZE = 5
_SCHEMA_LOCK = 0x64726F70  # any number that no other program locks on


T = TypeVar("T")


class Database:
    """Every method but `in_time` takes as long as the database does: never call one on an event
    loop."""

    def __init__(self, url: str) -> None:
        """Open the database, and make the tables if it has none.

        Raises:
            SettingsError: the URL is wrong, its driver is not installed, the file's folder takes no
                SQLite database, or a newer Dropless made the tables.
            TokenStoreError: it does not answer.
        """
        self.url = parse_url(url)
        self.engine = _engine(self.url)
        with self.answers():
            self._make_tables()

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Raises TokenStoreError."""
        with self.answers(), Session(self.engine) as session:
            yield session

    @contextmanager
    def changing(self) -> Iterator[Session]:
        """A transaction whose end every server sees at once. It comes whole or not at all.

        Raises TokenStoreError.
        """
        with self.answers(), Session(self.engine, expire_on_commit=False) as session:
            # First of all, so that changes come one after the other.
            session.execute(update(StoreState).values(revision=StoreState.revision + 1))
            yield session
            session.commit()

    @contextmanager
    def answers(self) -> Iterator[None]:
        """Turns what a database says when it fails into an error of ours.

        Raises InvalidRequestError, TokenStoreError.
        """
        try:
            yield
        except IntegrityError:
            raise
        except DataError as error:  # PostgreSQL stores no NUL, and nothing too long for its column
            raise InvalidRequestError(
                f"a name or another text cannot be stored: {_first_line(error.orig)}"
            ) from error
        except (DBAPIError, PoolTimeoutError) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            raise self.failure(cause) from error

    async def in_time(self, work: Awaitable[T]) -> T:
        """What `work` gives, which may go on behind. Raises TokenStoreError: it takes too long."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await work
        except TimeoutError:
            raise self.failure(TimeoutError(f"nothing within {PATIENCE_S} s")) from None

    def failure(self, cause: BaseException | None) -> TokenStoreError:
        """The error of ours for one of a driver."""
        return TokenStoreError(
            f"the database of users and tokens ({self.name}) does not answer: "
            f"{_first_line(cause)}; see that it runs, and try again"
        )

    @property
    def name(self) -> str:
        """For people: without a password."""
        return self.url.render_as_string(hide_password=True)

    def _make_tables(self) -> None:
        with self.engine.begin() as connection:
            if self.engine.dialect.name == "postgresql":  # two servers may start at once
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_SCHEMA_LOCK})"))
            for table in Base.metadata.sorted_tables:
                connection.execute(CreateTable(table, if_not_exists=True))
                for index in table.indexes:
                    connection.execute(CreateIndex(index, if_not_exists=True))
            version = connection.scalar(select(StoreState.version))
            if version is None:
                first = {"id": 1, "version": VERSION, "revision": 0}
                connection.execute(text(_INSERT_STATE), first)
            elif version != VERSION:
                raise SettingsError(
                    f"the database of users and tokens ({self.name}) has tables of version "
                    f"{version}, this Dropless knows version {VERSION}; use the Dropless that made "
                    "it, or a newer one"
                )


_INSERT_STATE = (
    "INSERT INTO store_state (id, version, revision) VALUES (:id, :version, :revision) "
    "ON CONFLICT (id) DO NOTHING"
)


def parse_url(url: str) -> URL:
    """Raises SettingsError, which does not repeat the URL: it may hold a password."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise SettingsError(f"identity.database is no database URL; {_URL_EXAMPLES}") from None
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise SettingsError(
            f"identity.database is of kind {parsed.drivername!r}, which is not supported; "
            f"{_URL_EXAMPLES}"
        )
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise SettingsError(f"identity.database names no file; {_URL_EXAMPLES}")
    return parsed


_URL_EXAMPLES = (
    "write sqlite:////var/lib/dropless/identity.db or postgresql://user@host:5432/dropless"
)


def _engine(url: URL) -> Engine:
    if url.drivername == "sqlite":
        _own_file(Path(url.database or ""))
        engine = create_engine(url, connect_args={"timeout": PATIENCE_S})
        event.listen(engine, "connect", _set_up_sqlite)
        return engine
    options = f"{url.query.get('options', '')} -c statement_timeout={PATIENCE_S * 1000}"
    try:
        return create_engine(
            url,
            pool_size=_POOL_SIZE,
            pool_timeout=PATIENCE_S,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": PATIENCE_S,
                "tcp_user_timeout": PATIENCE_S * 1000,  # for a server that is gone without a word
                "options": options,
            },
        )
    except (ModuleNotFoundError, NoSuchModuleError):
        raise SettingsError(
            "PostgreSQL needs its driver; install it with: pip install 'dropless[postgres]'"
        ) from None


def _own_file(path: Path) -> None:
    """Nobody else on the machine may read it; SQLite's own files beside it inherit that."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        # Only ever a new file: closing a file that this process has open as a database too would
        # drop its locks, and another process would delete the log from under it.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be opened: {error.strerror}; choose another place with "
            "identity.database"
        ) from None


def _set_up_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    # Readers never wait for a writer: the check of a token stays a matter of microseconds.
    [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise SettingsError(
            "the SQLite file of users and tokens lies where SQLite cannot keep a write-ahead log; "
            "move it to a local disk, or use PostgreSQL"
        )


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
