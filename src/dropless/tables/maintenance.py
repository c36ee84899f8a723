"""What keeps a table quick and small: few files, no rows beyond their time, no dead files.

Commits of some seconds make small files. They are merged when a day of a table has enough of them,
and once more, into large ones, when the day is over. Delta's log is kept short by checkpoints,
which commits write by themselves, every 100th.
"""

from __future__ import annotations

import datetime
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from deltalake import DeltaTable

from dropless.tables.schema import PAYLOAD, kind_of, values
from dropless.tables.table_name import TableName
from dropless.tables.table_store import WRITER_PROPERTIES, TableStore

SMALL_FILE_BYTES = 8 * 1024 * 1024
LARGE_FILE_BYTES = 128 * 1024 * 1024
MANY_FILES = 32

logger = logging.getLogger("dropless.tables")

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Compaction:
    """Files before and after."""

    removed: int
    added: int


def compact_small(store: TableStore, name: TableName) -> Compaction:
    """Merge the small files of each part of the table that has many of them."""
    table = store.table(name)
    small = Counter(day for day, size in _files(table) if size < SMALL_FILE_BYTES)
    parts = [day for day, count in small.items() if count >= MANY_FILES]
    return _compact(table, parts, SMALL_FILE_BYTES)


def compact_all(
    store: TableStore, name: TableName, *, before: datetime.date | None = None
) -> Compaction:
    """Merge files up to a good size for reading; of partitioned tables only `before` this day, if
    one is given."""
    table = store.table(name)
    small = Counter(day for day, size in _files(table) if size < LARGE_FILE_BYTES)
    parts = [
        day
        for day, count in small.items()
        if count > 1 and (day is None or before is None or day < before)
    ]
    return _compact(table, parts, LARGE_FILE_BYTES)


def delete_old_rows(store: TableStore, name: TableName, days: int, today: datetime.date) -> None:
    """Delete the rows of days before the last `days`, from a payload table. `vacuum` then deletes
    their files."""
    table = store.table(name)
    first = today - datetime.timedelta(days=days)
    if kind_of(name) is PAYLOAD and any(day < first for day, _ in _files(table) if day):
        table.delete(f"request_date < '{first.isoformat()}'")


def vacuum(
    store: TableStore, name: TableName, *, hours: int | None = None, dry_run: bool = False
) -> list[str]:
    """Delete the files that no version of the last `hours` needs (None: what the table says, two
    days unless somebody changed it), also those of commits that never came to be.

    Returns:
        The files that were, or would be, deleted.
    """
    return store.table(name).vacuum(
        retention_hours=hours, dry_run=dry_run, enforce_retention_duration=False, full=True
    )


def keep_tidy(store: TableStore, tables: Mapping[str, int | None], lock: int) -> None:
    """What is due for these tables, given with their retention in days. `lock` is a file of which
    the time says when the daily round was. Another writer may be faster, and storage may fail:
    what is not done now is done later."""
    now = datetime.datetime.now(datetime.UTC)
    daily = now.timestamp() - os.fstat(lock).st_mtime > _DAY_S
    for text, retention_days in tables.items():
        name = TableName.parse(text)
        if not store.exists(name):
            continue
        try:
            compact_small(store, name)
            if daily:
                if retention_days is not None:
                    delete_old_rows(store, name, retention_days, now.date())
                compact_all(store, name, before=now.date())
                vacuum(store, name)
        except Exception as error:
            store.forget(name)
            logger.warning("inference tables: %s is not tidied: %s", name, error)
    if daily:
        os.utime(lock)


def _files(table: DeltaTable) -> list[tuple[datetime.date | None, int]]:
    """Of each file its day, None in a table without days, and its size in bytes."""
    actions = table.get_add_actions(flatten=True)
    sizes = values(actions.column("size_bytes"))
    if "partition.request_date" not in actions.schema.names:
        return [(None, size) for size in sizes]
    return list(zip(values(actions.column("partition.request_date")), sizes, strict=True))


def _compact(table: DeltaTable, parts: list[datetime.date | None], target_bytes: int) -> Compaction:
    removed = added = 0
    for day in parts:
        filters = None if day is None else [("request_date", "=", day.isoformat())]
        metrics = table.optimize.compact(
            partition_filters=filters,
            target_size=target_bytes,
            max_concurrent_tasks=1,
            writer_properties=WRITER_PROPERTIES,
        )
        removed += metrics["numFilesRemoved"]
        added += metrics["numFilesAdded"]
    return Compaction(removed, added)
