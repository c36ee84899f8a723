"""What a table has, from its log alone: no file of it is read."""

from __future__ import annotations

import datetime
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from dropless.errors import TableError
from dropless.tables.schema import kind_of, values
from dropless.tables.table_name import PAYLOAD_SUFFIX, TableName
from dropless.tables.table_store import TableStore


@dataclass(slots=True)
class Part:
    """A day of a table, or a table without days."""

    rows: int = 0
    files: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Overview:
    """`newest` is the time of the last row, None if there is none."""

    name: TableName
    version: int
    newest: datetime.datetime | None
    days: dict[datetime.date | None, Part] = field(default_factory=dict)

    @property
    def whole(self) -> Part:
        parts = self.days.values()
        return Part(
            sum(part.rows for part in parts),
            sum(part.files for part in parts),
            sum(part.bytes for part in parts),
        )


def overview(store: TableStore, name: TableName) -> Overview:
    """Raises TableError: there is no such table."""
    table = store.table(name)
    actions = table.get_add_actions(flatten=True)
    columns = set(actions.schema.names)

    def column(title: str) -> list[Any]:
        return values(actions.column(title)) if title in columns else [None] * actions.num_rows

    days: dict[datetime.date | None, Part] = defaultdict(Part)
    for day, rows, size in zip(
        column("partition.request_date"), column("num_records"), column("size_bytes"), strict=True
    ):
        part = days[day]
        part.rows += rows or 0
        part.files += 1
        part.bytes += size
    kind = kind_of(name)
    latest = [] if kind is None else column(f"max.{kind.time_column}")
    newest = max((time for time in latest if time is not None), default=None)
    return Overview(name, table.version(), newest, dict(days))


def find_table(names: list[TableName], wanted: str) -> TableName:
    """The table that is meant by a full name, its last part, or what stands before `_payload`.

    Raises:
        TableError: none of these is, or several are; the message lists what there is.
    """
    found = [
        name
        for name in names
        if wanted in (str(name), name.table, name.table.removesuffix(PAYLOAD_SUFFIX))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(str(name) for name in found)
        raise TableError(f"several tables are called {wanted!r}: {several}; give the full name")
    there = ", ".join(str(name) for name in names) or "none yet"
    raise TableError(f"there is no table {wanted!r}; the tables are: {there}")
