"""The three kinds of table, and their rows as Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from arro3.core import (
    Array,
    ChunkedArray,
    DataType,
    Field,
    RecordBatch,
    Schema,
    list_array,
    struct_array,
)

from dropless.tables.rows import PayloadRow, Row, ServedEntityRow, UsageRow
from dropless.tables.table_name import PAYLOAD_SUFFIX, SERVED_ENTITIES, USAGE, TableName

_STRING = DataType.utf8()
_INT = DataType.int32()
_BIGINT = DataType.int64()
_DOUBLE = DataType.float64()
_DATE = DataType.date32()
_TIMESTAMP = DataType.timestamp("us", tz="UTC")
_STRINGS = DataType.list(Field("element", _STRING))
_ENTRY = (Field("key", _STRING, nullable=False), Field("value", _STRING))
_STRING_MAP = DataType.map(*_ENTRY, keys_sorted=False)


@dataclass(frozen=True)
class TableKind:
    """`statistics` are the columns by which files are skipped: all but those with long texts."""

    name: str
    row: type[Row]
    schema: Schema
    partition_by: tuple[str, ...]
    statistics: tuple[str, ...]
    time_column: str

    def batch(self, rows: Sequence[Row]) -> RecordBatch:
        """The rows of this kind, as one batch."""
        columns = zip(*(msgspec.structs.astuple(row) for row in rows), strict=True)
        arrays = [
            _array(list(values), self.schema.field(i).type) for i, values in enumerate(columns)
        ]
        return RecordBatch.from_arrays(arrays, schema=self.schema)


def _schema(columns: dict[str, DataType]) -> Schema:
    """Every column may be null, as in the tables that these are compatible with."""
    return Schema([Field(name, kind) for name, kind in columns.items()])


PAYLOAD = TableKind(
    name="payload",
    row=PayloadRow,
    schema=_schema(
        {
            "databricks_request_id": _STRING,
            "request_date": _DATE,
            "client_request_id": _STRING,
            "request_time": _TIMESTAMP,
            "status_code": _INT,
            "sampling_fraction": _DOUBLE,
            "execution_duration_ms": _BIGINT,
            "request": _STRING,
            "response": _STRING,
            "logging_error_codes": _STRINGS,
            "served_entity_id": _STRING,
            "requester": _STRING,
        }
    ),
    partition_by=("request_date",),
    statistics=("databricks_request_id", "request_time", "status_code", "requester"),
    time_column="request_time",
)

USAGE_KIND = TableKind(
    name="usage",
    row=UsageRow,
    schema=_schema(
        {
            "request_time": _TIMESTAMP,
            "status_code": _INT,
            "requester": _STRING,
            "databricks_request_id": _STRING,
            "client_request_id": _STRING,
            "served_entity_id": _STRING,
            "input_token_count": _BIGINT,
            "output_token_count": _BIGINT,
            "usage_context": _STRING_MAP,
        }
    ),
    partition_by=(),
    statistics=("request_time", "status_code", "requester", "served_entity_id"),
    time_column="request_time",
)

SERVED_ENTITIES_KIND = TableKind(
    name="served_entities",
    row=ServedEntityRow,
    schema=_schema(
        {
            "served_entity_id": _STRING,
            "endpoint_name": _STRING,
            "entity_name": _STRING,
            "entity_version": _STRING,
            "endpoint_config_version": _INT,
            "change_time": _TIMESTAMP,
        }
    ),
    partition_by=(),
    statistics=("served_entity_id", "endpoint_name", "change_time"),
    time_column="change_time",
)


def kind_of(name: TableName) -> TableKind | None:
    """The kind of the table of this name; None if it has a name that none of ours has."""
    if name == USAGE:
        return USAGE_KIND
    if name == SERVED_ENTITIES:
        return SERVED_ENTITIES_KIND
    return PAYLOAD if name.table.endswith(PAYLOAD_SUFFIX) else None


def values(column: Array | ChunkedArray) -> list[Any]:
    """A column's values as Python's own."""
    return [column[i].as_py() for i in range(len(column))]


def _array(values: list[Any], kind: DataType) -> Array:
    if kind == _DATE:
        return Array(values, _INT).cast(kind)
    if kind == _TIMESTAMP:
        return Array(values, _BIGINT).cast(kind)
    if kind == _STRINGS:
        flat = [text for texts in values for text in texts]
        return list_array(_offsets(values), Array(flat, _STRING), type=kind)
    if kind == _STRING_MAP:
        return _maps(values)
    return Array(values, kind)


def _maps(values: list[dict[str, str] | None]) -> Array:
    items = [item for value in values for item in (value or {}).items()]
    entries = struct_array(
        [Array([key for key, _ in items], _STRING), Array([text for _, text in items], _STRING)],
        fields=_ENTRY,
    )
    missing = Array([value is None for value in values], DataType.bool())
    lists = list_array(_offsets(values), entries, mask=missing)
    # A map lies in memory as a list of its entries: the same buffers under another type.
    return Array.from_arrow_pycapsule(
        _STRING_MAP.__arrow_c_schema__(), lists.__arrow_c_array__()[1]
    )


def _offsets(values: Sequence[Sequence[Any] | dict[str, str] | None]) -> Array:
    lengths = [0, *(len(value or ()) for value in values)]
    return Array(np.cumsum(lengths, dtype=np.int32))
