"""Queries: what they see, what they may do, what their errors say."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from dropless.errors import TableError
from dropless.tables.maintenance import delete_old_rows
from dropless.tables.spool import Spool
from dropless.tables.sql import TableQueries
from dropless.tables.stream_writer import StreamWriter
from dropless.tables.table_name import USAGE, TableName
from dropless.tables.table_store import TableStore
from tests.tables.made_up import NOON, TABLE, ended, opened, payload, usage

TWIN = TableName("main", "other", "tiny_payload")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TableStore:
    store = TableStore(str(tmp_path_factory.mktemp("tables")))
    store.commit(TABLE, [payload("a"), payload("b", status=500, requester="bob")], "app", 1)
    store.commit(USAGE, [usage("a")], "app", 1)
    return store


@pytest.fixture(scope="module")
def queries(store: TableStore) -> TableQueries:
    return TableQueries(store, [TABLE, USAGE])


@pytest.mark.parametrize(
    "table",
    [
        "tiny_payload",
        "main.default.tiny_payload",
        "MAIN.Default.tiny_payload",
        'main."default".tiny_payload',
        '"main.default.tiny_payload"',
        "main.default.tiny_payload AS main -- main.default.tiny_payload\n",
    ],
)
def test_a_table_goes_by_its_full_name_and_its_last_part(queries: TableQueries, table: str) -> None:
    assert list(queries.select(f"SELECT count(*) FROM {table};")) == [(2,)]


def test_a_name_in_a_text_stays_a_text(queries: TableQueries) -> None:
    [row] = queries.select(
        "SELECT 'main.default.tiny_payload' FROM main.default.tiny_payload LIMIT 1"
    )
    assert row == ("main.default.tiny_payload",)


def test_bodies_are_json(queries: TableQueries) -> None:
    result = queries.select("SELECT request->>'$.messages[0].content' AS said FROM tiny_payload")
    assert result.columns == ["said"]
    assert list(result) == [("Hi",), ("Hi",)]


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE x (a INT)",
        "COPY tiny_payload TO 'x.csv'",
        "INSERT INTO tiny_payload VALUES (1)",
        "DROP VIEW tiny_payload",
        "SET threads = 1",
        "ATTACH 'x.db'",
        "INSTALL httpfs",
    ],
)
def test_only_reading(queries: TableQueries, sql: str) -> None:
    with pytest.raises(TableError, match="tables are for reading here"):
        queries.select(sql)


def test_nothing_but_the_tables_is_read(
    queries: TableQueries, store: TableStore, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("password\n1234\n")
    for source in (f"'{secret}'", f"read_text('{secret}')", f"'{store.location}/../secret.csv'"):
        with pytest.raises(TableError, match=r"Permission Error|disabled by configuration"):
            queries.select(f"FROM {source}")


def test_errors_say_what_there_is(queries: TableQueries) -> None:
    with pytest.raises(TableError, match=r"(?s)nosuch.*The tables are: main\.default\.tiny_pay"):
        queries.select("FROM nosuch")
    with pytest.raises(TableError, match=r"(?s)statuscode.*tiny_payload are: .*status_code"):
        queries.select("SELECT statuscode FROM tiny_payload")
    with pytest.raises(TableError, match="syntax error"):
        queries.select("SELEC 1")
    with pytest.raises(TableError, match="has 2 statements"):
        queries.select("SELECT 1; SELECT 2")
    with pytest.raises(TableError, match="has 0 statements"):
        queries.select("")


def test_tables_that_share_a_last_part_go_by_their_full_names(store: TableStore) -> None:
    store.commit(TWIN, [payload("c")], "app", 1)
    queries = TableQueries(store, [TABLE, TWIN])
    both = "SELECT count(*) FROM main.default.tiny_payload UNION ALL FROM main.other.tiny_payload"
    with pytest.raises(TableError, match="number of result columns"):
        queries.select(both)
    assert list(queries.select("SELECT count(*) FROM main.other.tiny_payload")) == [(1,)]
    with pytest.raises(TableError, match="tiny_payload"):
        queries.select("FROM tiny_payload")


def test_a_table_without_rows_has_columns(tmp_path: Path) -> None:
    store = TableStore(str(tmp_path))
    store.commit(TABLE, [payload("a")], "app", 1)
    store.commit(USAGE, [usage("a")], "app", 1)
    day = store.table(TABLE).partitions()[0]["request_date"]
    delete_old_rows(store, TABLE, 1, datetime.date.fromisoformat(day) + datetime.timedelta(9))
    store.table(USAGE).delete()
    queries = TableQueries(store, [TABLE, USAGE])
    for name in (TABLE, USAGE):
        result = queries.select(f"SELECT * FROM {name}")
        assert result.columns == [field.name for field in store.table(name).schema().fields]
        assert list(result) == []


def test_names_of_folders_may_have_quotes(tmp_path: Path) -> None:
    store = TableStore(str(tmp_path / "it's mine"))
    store.commit(TABLE, [payload("a")], "app", 1)
    out = tmp_path / "it's.parquet"
    queries = TableQueries(store, [TABLE], out=out)
    assert list(queries.select("SELECT count(*) FROM tiny_payload")) == [(1,)]
    assert queries.write_parquet("FROM tiny_payload", out) == 1
    with pytest.raises(TableError, match=r"Permission Error|disabled by configuration"):
        queries.write_parquet("FROM tiny_payload", tmp_path / "other.parquet")


def test_a_query_sees_the_tables_as_they_were(store: TableStore, tmp_path: Path) -> None:
    store = TableStore(str(tmp_path))
    store.commit(TABLE, [payload("a", time=NOON)], "app", 1)
    queries = TableQueries(store, [TABLE])
    store.commit(TABLE, [payload("b", time=NOON)], "app", 2)
    assert list(queries.select("SELECT count(*) FROM tiny_payload")) == [(1,)]


def test_rows_on_their_way_are_seen_once(tmp_path: Path) -> None:
    store = TableStore(str(tmp_path / "tables"))
    spool = Spool(tmp_path / "spool", max_bytes=1 << 30)
    stream = spool.stream(str(TABLE))
    counts = f"SELECT count(*), count(DISTINCT databricks_request_id) FROM {TABLE}"
    tokens = "SELECT sum(output_token_count), max(usage_context['team']) FROM endpoint_usage"
    for name in (TABLE, USAGE):
        store.make(name)
    writer = StreamWriter(stream.folder, store)
    for i in range(1, 5):
        stream.append(opened(f"open-{i}"))
        stream.append(ended(f"call-{i}"))
        queries = TableQueries(store, [TABLE, USAGE], spool=spool.folder)
        assert list(queries.select(counts)) == [(i, i)]
        assert list(queries.select(tokens)) == [(5 * i, "red")]
        if i % 2 == 0:
            writer.drain()
    assert list(TableQueries(store, [TABLE]).select(counts)) == [(4, 4)]
    spool.close()
