"""An inference table for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from arro3.core import Table

from dropless.errors import TableError
from dropless.tables.conversations import Conversation, Wanted, read_conversation
from dropless.tables.rows import PayloadRow
from dropless.tables.schema import PAYLOAD, kind_of
from dropless.tables.search import search
from dropless.tables.search_query import Search
from dropless.tables.sql import QueryResult, TableQueries
from dropless.tables.table_name import TableName
from dropless.tables.table_store import TableStore

if TYPE_CHECKING:
    import pandas


class InferenceTable:
    """The calls of an endpoint, as they are in the table now.

    table = InferenceTable("~/.local/share/dropless/tables/main/default/dbrx_payload")
    table.to_pandas(where="status_code >= 400")
    for conversation in table.conversations():
        print(conversation.messages)
    """

    def __init__(self, path: str | Path, storage_options: Mapping[str, str] | None = None) -> None:
        """`path` is the table's folder or URL; it ends with catalog, schema and table.
        `storage_options` are what the storage of a URL needs to know.

        Raises:
            TableError: there is no table.
        """
        text = str(path) if "://" in str(path) else str(Path(path).expanduser().absolute())
        location, *parts = text.rstrip("/").rsplit("/", 3)
        self.name = TableName.parse(".".join(parts))
        self._store = TableStore(location, storage_options)
        self._store.table(self.name)

    def query(self, sql: str) -> QueryResult:
        """The rows of a SELECT; the table goes by its name. Raises TableError: it is wrong."""
        return self._queries().select(sql)

    def to_arrow(self, where: str | None = None) -> Table:
        """The rows, or those for which this SQL is true, as an Arrow table: what pyarrow, polars,
        pandas and DuckDB take. Raises TableError: the SQL is wrong."""
        return self._queries().arrow(self._select(where))

    def to_pandas(self, where: str | None = None) -> pandas.DataFrame:
        """Likewise, as a data frame; needs pandas."""
        return self._queries().pandas(self._select(where))

    def conversations(self, wanted: Wanted | None = None) -> Iterator[Conversation]:
        """The chats, the oldest first. Raises TableError: this is no payload table, or
        `wanted.where` is wrong."""
        if kind_of(self.name) is not PAYLOAD:
            raise TableError(f"{self.name} has no conversations; a table ...{PAYLOAD.name} has")
        wanted = wanted or Wanted()
        for row in self._queries().select(*wanted.sql(self.name)):
            conversation = read_conversation(*row)
            if conversation is not None and wanted.takes(conversation):
                yield conversation

    def search(self, text: str | None = None, limit: int = 20) -> list[PayloadRow]:
        """The newest calls that have the text in request or response."""
        return search(self._store, None, self.name, Search(text=text), limit)

    def _select(self, where: str | None) -> str:
        return f'SELECT * FROM "{self.name}" WHERE {"true" if where is None else where}'

    def _queries(self) -> TableQueries:
        return TableQueries(self._store, [self.name])
