"""Delta tables as others see them: schema, properties, changes; in a folder and in a bucket."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from arro3.core import Table
from deltalake import DeltaTable

from dropless.errors import TableError
from dropless.tables.rows import ServedEntityRow
from dropless.tables.schema import values
from dropless.tables.sql import TableQueries
from dropless.tables.table_name import (
    SERVED_ENTITIES,
    USAGE,
    TableName,
    default_prefix,
    is_name_part,
)
from dropless.tables.table_store import TableStore
from tests.tables.made_up import NOON, TABLE, payload, usage

S3_START_S = 30


def columns_of(table: DeltaTable) -> list[tuple[str, object]]:
    return [(field.name, field.type.to_json()) for field in table.schema().fields]


@pytest.fixture
def store(tmp_path: Path) -> TableStore:
    return TableStore(str(tmp_path / "tables"))


def test_the_tables_have_the_platforms_columns(store: TableStore) -> None:
    store.commit(TABLE, [payload("a")], "app", 1)
    store.commit(USAGE, [usage("a")], "app", 1)
    store.commit(SERVED_ENTITIES, [ServedEntityRow("e", "n", "m", None, 1, NOON)], "app", 1)
    strings = '{"type":"array","elementType":"string","containsNull":true}'
    string_map = '{"type":"map","keyType":"string","valueType":"string","valueContainsNull":true}'
    assert columns_of(store.table(TABLE)) == [
        ("databricks_request_id", '"string"'),
        ("request_date", '"date"'),
        ("client_request_id", '"string"'),
        ("request_time", '"timestamp"'),
        ("status_code", '"integer"'),
        ("sampling_fraction", '"double"'),
        ("execution_duration_ms", '"long"'),
        ("request", '"string"'),
        ("response", '"string"'),
        ("logging_error_codes", strings),
        ("served_entity_id", '"string"'),
        ("requester", '"string"'),
    ]
    assert columns_of(store.table(USAGE)) == [
        ("request_time", '"timestamp"'),
        ("status_code", '"integer"'),
        ("requester", '"string"'),
        ("databricks_request_id", '"string"'),
        ("client_request_id", '"string"'),
        ("served_entity_id", '"string"'),
        ("input_token_count", '"long"'),
        ("output_token_count", '"long"'),
        ("usage_context", string_map),
    ]
    assert columns_of(store.table(SERVED_ENTITIES)) == [
        ("served_entity_id", '"string"'),
        ("endpoint_name", '"string"'),
        ("entity_name", '"string"'),
        ("entity_version", '"string"'),
        ("endpoint_config_version", '"integer"'),
        ("change_time", '"timestamp"'),
    ]
    assert all(
        field.nullable
        for name in (TABLE, USAGE, SERVED_ENTITIES)
        for field in store.table(name).schema().fields
    )
    metadata = store.table(TABLE).metadata()
    assert metadata.partition_columns == ["request_date"]
    assert metadata.configuration["delta.enableChangeDataFeed"] == "true"


def test_rows_come_back_as_they_went_in(store: TableStore) -> None:
    row = payload("a", request="Grüße \x00 漢字", requester=None)
    store.commit(TABLE, [row], "app", 1)
    store.commit(USAGE, [usage("a"), usage("b")], "app", 1)
    queries = TableQueries(store, [TABLE, USAGE])
    [found] = queries.select(
        "SELECT databricks_request_id, request_date::VARCHAR, epoch_us(request_time), status_code, "
        "sampling_fraction, execution_duration_ms, request, logging_error_codes, requester "
        "FROM tiny_payload"
    )
    assert found == ("a", "2024-10-04", NOON, 200, 1.0, 12, "Grüße \x00 漢字", [], None)
    assert list(queries.select("SELECT usage_context FROM endpoint_usage")) == [
        ({"team": "red"},),
        ({"team": "red"},),
    ]


def test_changes_can_be_followed(store: TableStore) -> None:
    store.commit(TABLE, [payload("a")], "app", 1)
    store.commit(TABLE, [payload("b")], "app", 2)
    changes = Table.from_arrow(store.table(TABLE).load_cdf(starting_version=2))
    assert values(changes.column("databricks_request_id")) == ["b"]
    assert values(changes.column("_change_type")) == ["insert"]


def test_long_texts_are_not_repeated_in_the_log(store: TableStore, tmp_path: Path) -> None:
    store.commit(TABLE, [payload("a", request="needle" * 1000)], "app", 1)
    [log] = (tmp_path / "tables").glob("main/default/*/_delta_log/*01.json")
    assert "needle" not in log.read_text()
    assert "databricks_request_id" in log.read_text()
    [file] = (tmp_path / "tables").glob("main/default/*/*/*.parquet")
    assert file.read_bytes().count(b"needleneedle") <= 1


def test_transactions_are_known_to_a_table_that_was_checkpointed(store: TableStore) -> None:
    for version in range(3):
        store.commit(TABLE, [payload("a")], f"app-{version % 2}", version)
    store.table(TABLE).create_checkpoint()
    other = TableStore(store.location)
    assert [other.committed(TABLE, app) for app in ("app-0", "app-1", "app-2")] == [2, 1, -1]
    assert other.committed(USAGE, "app-0") == -1  # there is no table


def test_served_entities_are_written_when_they_change(store: TableStore) -> None:
    first = ServedEntityRow("e", "n", "m", None, 1, NOON)
    later = ServedEntityRow("e", "n", "m", None, 1, NOON + 1)  # a restart
    changed = ServedEntityRow("e", "n", "m", None, 2, NOON + 2)
    store.commit(SERVED_ENTITIES, [first], "app", 1)
    store.commit(SERVED_ENTITIES, [later], "app", 2)
    store.commit(SERVED_ENTITIES, [later, changed], "app", 3)
    query = "SELECT endpoint_config_version, epoch_us(change_time) FROM served_entities ORDER BY 2"
    found = list(TableQueries(store, [SERVED_ENTITIES]).select(query))
    assert found == [(1, NOON), (2, NOON + 2)]


def test_a_table_of_others_is_not_written_to(store: TableStore) -> None:
    from arro3.core import DataType, Field, Schema

    DeltaTable.create(store.uri(TABLE), Schema([Field("mine", DataType.int64())]))
    with pytest.raises(Exception, match=r"(?i)schema|field|column"):
        store.commit(TABLE, [payload("a")], "app", 1)
    assert store.table(TABLE).version() == 0


def test_names() -> None:
    assert str(TableName.parse("main.default.dbrx_payload")) == "main.default.dbrx_payload"
    for wrong in ("dbrx", "a.b", "a.b.c.d", "a..c", "a.b/..", "a.b.c d", "a.-b.c"):
        with pytest.raises(TableError, match="no name of a table"):
            TableName.parse(wrong)
    assert default_prefix("qwen2.5/coder") == "qwen2_5_coder"
    for endpoint in ("", "-x", "ünï", "a" * 300, "../.."):
        assert is_name_part(default_prefix(endpoint) + "_payload")


@pytest.fixture
def bucket() -> Iterator[dict[str, str]]:
    """The storage options of a server that speaks S3, with a bucket called logs."""
    program = shutil.which("moto_server")
    if program is None:
        pytest.skip("needs moto_server: pip install 'moto[s3,server]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [program, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + S3_START_S
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{url}/logs", method="PUT"))
                break
            except urllib.error.URLError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }
    finally:
        server.kill()
        server.wait()


def test_tables_in_a_bucket(bucket: dict[str, str]) -> None:
    store = TableStore("s3://logs/dropless/", bucket)
    other = TableStore("s3://logs/dropless", bucket)
    store.commit(TABLE, [payload("a"), payload("b", status=500)], "app", 1)
    assert other.committed(TABLE, "app") == 1
    store.commit(TABLE, [payload("c")], "app", 2)
    other.commit(TABLE, [payload("d")], "other", 1)  # from an old snapshot
    store.commit(TABLE, [payload("e")], "app", 3)
    with pytest.raises(Exception, match="Concurrent transaction"):
        other.commit(TABLE, [payload("e")], "app", 3)
    queries = TableQueries(store, [TABLE])
    for name in ("tiny_payload", str(TABLE)):
        assert list(queries.select(f"SELECT count(*) FROM {name}")) == [(5,)]
    with pytest.raises(TableError, match="not listed"):
        store.names()
    with pytest.raises(TableError, match="there is no table"):
        store.table(USAGE)
