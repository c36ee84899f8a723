"""The Delta tables of one location: a folder, or a bucket of S3-compatible storage.

A table lies at LOCATION/CATALOG/SCHEMA/TABLE. Rows come in with a transaction of whoever brings
them, `(app_id, version)`, in the same commit: the table itself knows up to where it has the rows of
a stream, so that they come in once, however often that is tried.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from deltalake import (
    ColumnProperties,
    CommitProperties,
    DeltaTable,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import TableNotFoundError

from dropless.errors import TableError
from dropless.tables.rows import Row
from dropless.tables.schema import SERVED_ENTITIES_KIND, TableKind, kind_of, values
from dropless.tables.table_name import TableName

MAX_COMMIT_RETRIES = 50  # against others who write to the table; each costs milliseconds

# Long texts get neither statistics nor a dictionary: both would repeat them in each file.
_LONG_TEXT = ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE")
WRITER_PROPERTIES = WriterProperties(
    compression="ZSTD",
    compression_level=3,
    column_properties={"request": _LONG_TEXT, "response": _LONG_TEXT},
)


def table_properties(kind: TableKind) -> dict[str, str]:
    """What a new table is told to do. Its log is kept short: each commit lists it several times."""
    return {
        "delta.enableChangeDataFeed": "true",
        "delta.dataSkippingStatsColumns": ",".join(kind.statistics),
        "delta.checkpointInterval": "100",
        "delta.logRetentionDuration": "interval 2 days",
        "delta.deletedFileRetentionDuration": "interval 2 days",
    }


class TableStore:
    """Opens, makes and fills tables. Errors of the storage come as `deltalake` raises them."""

    def __init__(self, location: str, storage_options: Mapping[str, str] | None = None) -> None:
        """`location` is a path or a URL as s3://bucket/prefix, `storage_options` what its storage
        needs to know (endpoint, keys, region)."""
        self.location = location.rstrip("/")
        self.storage_options = dict(storage_options or {})
        self._open: dict[TableName, DeltaTable] = {}

    @property
    def is_local(self) -> bool:
        return "://" not in self.location

    def uri(self, name: TableName) -> str:
        return "/".join((self.location, *name))

    def names(self) -> list[TableName]:
        """The tables of a folder. Storage that is no folder cannot list them.

        Raises:
            TableError: the location is none.
        """
        if not self.is_local:
            raise TableError(
                f"{self.location} is no folder, and tables elsewhere are not listed; name them"
            )
        logs = sorted(Path(self.location).glob("*/*/*/_delta_log"))
        return [TableName(*log.parts[-4:-1]) for log in logs]

    def exists(self, name: TableName) -> bool:
        return DeltaTable.is_deltatable(self.uri(name), self.storage_options)

    def table(self, name: TableName) -> DeltaTable:
        """The table as it is now.

        Raises:
            TableError: there is none.
        """
        try:
            if name in self._open:
                self._open[name].update_incremental()
            else:
                self._open[name] = DeltaTable(self.uri(name), storage_options=self.storage_options)
        except TableNotFoundError:
            self.forget(name)
            raise TableError(f"there is no table {name} in {self.location}") from None
        return self._open[name]

    def forget(self, name: TableName) -> None:
        """After an error: look at the table anew next time."""
        self._open.pop(name, None)

    def committed(self, name: TableName, app_id: str) -> int:
        """The last version of this application's transactions; -1 if there is none."""
        try:
            self.table(name)
        except TableError:
            return -1
        return self.seen(name, app_id)

    def seen(self, name: TableName, app_id: str) -> int:
        """As `committed`, of the table as it was when the store looked at it last."""
        version = self._open[name].transaction_version(app_id) if name in self._open else None
        return -1 if version is None else version

    def commit(self, name: TableName, rows: Sequence[Row], app_id: str, version: int) -> None:
        """Append the rows and note the transaction, both or neither. Makes the table if there is
        none. On the disk when it returns, if the location is a folder."""
        kind = kind_of(name)
        assert kind is not None
        table = self.make(name)
        if kind is SERVED_ENTITIES_KIND:
            rows = _changed(table, rows)
            if not rows:
                return
        before = table.version()
        write_deltalake(
            table,
            kind.batch(rows),
            mode="append",
            writer_properties=WRITER_PROPERTIES,
            commit_properties=CommitProperties(
                max_commit_retries=MAX_COMMIT_RETRIES,
                app_transactions=[Transaction(app_id, version)],
            ),
        )
        if self.is_local:
            _sync(Path(self.uri(name)), before, table.version())

    def make(self, name: TableName) -> DeltaTable:
        """The table, made if there is none."""
        if name not in self._open:
            kind = kind_of(name)
            assert kind is not None
            if self.is_local:
                # Requests of users: for the owner alone, who may open the folder to others.
                Path(self.location).mkdir(mode=0o700, parents=True, exist_ok=True)
            self._open[name] = DeltaTable.create(
                self.uri(name),
                kind.schema,
                mode="ignore",
                partition_by=list(kind.partition_by),
                configuration=table_properties(kind),
                storage_options=self.storage_options,
            )
            if self.is_local and self._open[name].version() == 0:
                _sync(Path(self.uri(name)), -1, 0)
        return self._open[name]


def _changed(table: DeltaTable, rows: Sequence[Row]) -> list[Row]:
    """The served entities that the table does not have just so: each start of a server tells all
    that it has."""
    what = [name for name in SERVED_ENTITIES_KIND.schema.names if name != "change_time"]
    known = {
        row
        for batch in table.scan(columns=what)
        for row in zip(*(values(batch.column(name)) for name in what), strict=True)
    }
    return [row for row in rows if msgspec.structs.astuple(row)[: len(what)] not in known]


def _sync(folder: Path, after: int, last: int) -> None:
    """Bring the commits after this version to the disk: their files, then their log entries."""
    log = folder / "_delta_log"
    entries = [log / f"{version:020d}.json" for version in range(after + 1, last + 1)]
    added = [
        folder / action["add"]["path"]
        for entry in entries
        for action in _actions(entry)
        if "add" in action
    ]
    for path in [*added, *{path.parent for path in added}, *entries, log, folder]:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # of another writer, and compacted meanwhile
            continue
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _actions(entry: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in entry.read_text().splitlines()]
