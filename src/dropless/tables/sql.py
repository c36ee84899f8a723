"""SQL over the tables of a store, with DuckDB, for reading only.

A query sees the tables as they are when the connection is made, and nothing else: no other file,
no network.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
from arro3.core import Table
from deltalake import DeltaTable

from dropless.errors import TableError
from dropless.tables.rows import Row
from dropless.tables.schema import kind_of, values
from dropless.tables.table_name import TableName
from dropless.tables.table_store import TableStore
from dropless.tables.waiting import WaitingRows

if TYPE_CHECKING:
    import pandas

FETCH_ROWS = 1000
_TYPES = {
    "string": "VARCHAR",
    "date": "DATE",
    "timestamp": "TIMESTAMPTZ",
    "integer": "INTEGER",
    "long": "BIGINT",
    "double": "DOUBLE",
    "boolean": "BOOLEAN",
}
_READING = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}


class TableQueries:
    """A connection that knows some tables: by their full names, and by the last part alone where
    only one has it."""

    def __init__(
        self,
        store: TableStore,
        names: Sequence[TableName],
        *,
        spool: Path | None = None,
        out: Path | None = None,
        threads: int | None = None,
        memory: str | None = None,
    ) -> None:
        """`spool` has rows that are seen before they are in their table, `out` is the one file
        that `write_parquet` may write.

        Raises:
            TableError: a table is not there or cannot be read.
        """
        self._names = list(names)
        self._store = store
        config: dict[str, Any] = {"autoinstall_known_extensions": False}
        if threads is not None:
            config["threads"] = threads
        if memory is not None:
            config["memory_limit"] = memory
        self._connection = duckdb.connect(config=config)
        self._connection.execute("SET TimeZone = 'UTC'")
        self.tables: dict[TableName, DeltaTable] = {}
        for name in names:
            waiting = None if spool is None else WaitingRows(spool, name)
            self.tables[name] = store.table(name)
            self._add(name, [] if waiting is None else waiting.missing_in(store))
        if store.is_local:
            folders = _literals([store.uri(name) for name in names])
            self._connection.execute(f"SET allowed_directories = {folders}")
        if out is not None:
            self._connection.execute(f"SET allowed_paths = {_literals([str(out)])}")
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")

    def select(self, sql: str, parameters: Sequence[Any] = ()) -> QueryResult:
        """The result of one SELECT, WITH, DESCRIBE, SUMMARIZE, SHOW or EXPLAIN.

        Raises:
            TableError: it is none of these, or wrong; the message has what is there.
        """
        statement = self._checked(sql)
        try:
            self._connection.execute(statement, parameters)
        except duckdb.Error as error:
            raise self._explained(error) from error
        description = self._connection.description or []
        return QueryResult(self._connection, [column[0] for column in description])

    def arrow(self, sql: str) -> Table:
        """The result as an Arrow table. Raises as `select`."""
        statement = self._checked(sql)
        try:
            return Table.from_arrow(self._connection.sql(statement))
        except duckdb.Error as error:
            raise self._explained(error) from error

    def pandas(self, sql: str) -> pandas.DataFrame:
        """The result as a data frame. Raises as `select`, and TableError: there is no pandas."""
        if importlib.util.find_spec("pandas") is None:
            raise TableError("a data frame needs pandas; install it with pip install pandas")
        statement = self._checked(sql)
        try:
            return self._connection.sql(statement).df()
        except duckdb.Error as error:
            raise self._explained(error) from error

    def write_parquet(self, sql: str, out: Path) -> int:
        """Write the result of a SELECT to this file, `out` of the constructor, and return its
        number of rows. Raises as `select`."""
        statement = self._checked(sql)
        try:
            self._connection.execute(f"COPY ({statement}) TO {_literal(str(out))} (FORMAT parquet)")
        except duckdb.Error as error:
            raise self._explained(error) from error
        [[rows]] = self._connection.fetchall()
        return int(rows)

    def _add(self, name: TableName, waiting: list[Row]) -> None:
        table = self.tables[name]
        if self._store.is_local:
            source = _scan_of_files(table, self._store.uri(name))
        else:
            self._connection.register(f"scan of {name}", _Scan(table))
            source = f'FROM "scan of {name}"'
        kind = kind_of(name)
        if waiting and kind is not None:
            rows = Table.from_batches([kind.batch(waiting)])
            self._connection.register(f"rows for {name}", rows)
            source += f' UNION ALL FROM "rows for {name}"'
        self._connection.execute(f'CREATE VIEW "{name}" AS {source}')
        if sum(other.table == name.table for other in self._names) == 1:
            self._connection.execute(f'CREATE VIEW "{name.table}" AS FROM "{name}"')

    def _checked(self, sql: str) -> str:
        """The one statement of this text, with full names as DuckDB knows them."""
        try:
            statements = duckdb.extract_statements(self._with_names_quoted(sql))
        except duckdb.Error as error:
            raise self._explained(error) from error
        if len(statements) != 1:
            raise TableError(f"the query has {len(statements)} statements; it must be one")
        if statements[0].type not in _READING:
            raise TableError(
                "tables are for reading here: the query must begin with SELECT, WITH, FROM, "
                "DESCRIBE, SUMMARIZE, SHOW or EXPLAIN"
            )
        return statements[0].query.rstrip().rstrip(";")

    def _with_names_quoted(self, sql: str) -> str:
        """DuckDB has catalogs of its own called main and system: a full name becomes one
        identifier."""
        starts = [*duckdb.tokenize(sql), (len(sql), None)]
        texts = [
            (start, end)
            for (start, kind), (end, _) in itertools.pairwise(starts)
            if kind in (duckdb.token_type.string_const, duckdb.token_type.comment)
        ]
        for name in sorted(self._names, key=lambda name: -len(str(name))):
            parts = r"\.".join(rf'"?{re.escape(part)}"?' for part in name)
            pattern = re.compile(rf'(?<![\w."]){parts}(?![\w."])', re.IGNORECASE)
            for match in reversed(list(pattern.finditer(sql))):
                if not any(start <= match.start() < end for start, end in texts):
                    sql = f'{sql[: match.start()]}"{name}"{sql[match.end() :]}'
        return sql

    def _explained(self, error: duckdb.Error) -> TableError:
        message = str(error)
        if isinstance(error, duckdb.CatalogException):
            # DuckDB may suggest a table of its own.
            lines = [line for line in message.splitlines() if not line.startswith("Did you mean")]
            names = ", ".join(str(name) for name in self._names)
            message = "\n".join([*lines, f"The tables are: {names}"])
        elif isinstance(error, duckdb.BinderException):
            for name in self._names:
                fields = ", ".join(field.name for field in self.tables[name].schema().fields)
                message += f"\nThe columns of {name} are: {fields}"
        return TableError(message)


class QueryResult:
    """Rows as they come. `columns` are their names."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, columns: list[str]) -> None:
        self.columns = columns
        self._connection = connection

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        while rows := self._connection.fetchmany(FETCH_ROWS):
            yield from rows


class _Scan:
    """A table outside of a folder, read anew by each query, through `deltalake`."""

    def __init__(self, table: DeltaTable) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._table.scan().__arrow_c_stream__(requested_schema)


def _literal(text: str) -> str:
    quoted = text.replace("'", "''")
    return f"'{quoted}'"


def _literals(texts: Sequence[str]) -> str:
    return f"[{', '.join(_literal(text) for text in texts)}]"


def _scan_of_files(table: DeltaTable, folder: str) -> str:
    """A SELECT of the table's columns, in their order, from its files."""
    fields = table.schema().fields
    paths = values(table.get_add_actions(flatten=True).column("path"))
    files = [f"{folder}/{path}" for path in paths]
    if not files:
        columns = ", ".join(f'NULL::{_sql_type(field.type)} AS "{field.name}"' for field in fields)
        return f"SELECT {columns} WHERE false"
    columns = ", ".join(f'"{field.name}"' for field in fields)
    partitions = set(table.metadata().partition_columns)
    types = {field.name: _sql_type(field.type) for field in fields if field.name in partitions}
    hive = f", hive_partitioning = true, hive_types = {types!r}" if partitions else ""
    return f"SELECT {columns} FROM read_parquet({_literals(files)}{hive})"


def _sql_type(delta_type: Any) -> str:
    match delta_type.type:
        case "array":
            return f"{_sql_type(delta_type.element_type)}[]"
        case "map":
            key, value = delta_type.key_type, delta_type.value_type
            return f"MAP({_sql_type(key)}, {_sql_type(value)})"
        case name:
            return _TYPES[name]
