"""The newest calls: from the table and from the spool, none twice and none missing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dropless.tables.records import Record
from dropless.tables.rows import PayloadRow
from dropless.tables.search import search
from dropless.tables.search_query import Search
from dropless.tables.spool import Spool
from dropless.tables.stream_writer import StreamWriter
from dropless.tables.table_store import TableStore
from tests.tables.made_up import NOON, TABLE, chat, opened, payload

DAY_US = 86_400_000_000


def call(i: int) -> PayloadRow:
    """The i-th call: five an hour over several days, some failed, some of bob."""
    return payload(
        f"call-{i:03d}",
        time=NOON + i * DAY_US // 120,
        status=500 if i % 7 == 0 else 200,
        requester="bob" if i % 5 == 0 else "ada",
        **chat(f"What is {i}?", "A Number" if i % 2 else "A figure"),
    )


CALLS = [call(i) for i in range(150)]


def ids(rows: list[PayloadRow]) -> list[str]:
    return [row.databricks_request_id for row in rows]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[TableStore, Path]:
    """100 calls in the table, some of which the spool still has, and 50 that only the spool has;
    logged in no order."""
    folder = tmp_path_factory.mktemp("search")
    store = TableStore(str(folder / "tables"))
    spool = Spool(folder / "spool", max_bytes=1 << 30)
    stream = spool.stream(str(TABLE))
    mixed = random.Random(1).sample(CALLS, len(CALLS))
    for i, row in enumerate(mixed):
        if i == 100:
            StreamWriter(stream.folder, store).drain()
        stream.append(opened(row.databricks_request_id))
        stream.append(Record(row.databricks_request_id, ends=True, rows=(row,)))
    stream.append(opened("still-open"))
    return store, spool.folder


def test_pages_have_every_call_once_the_newest_first(place: tuple[TableStore, Path]) -> None:
    store, spool = place
    found: list[PayloadRow] = []
    before = None
    while page := search(store, spool, TABLE, Search(before=before), 40):
        found += page
        before = (page[-1].request_time, page[-1].databricks_request_id)
    assert found == CALLS[::-1]


def test_without_the_spool_only_the_table_is_searched(place: tuple[TableStore, Path]) -> None:
    store, _ = place
    assert len(search(store, None, TABLE, Search(), 1000)) == 100


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Search(text="a NUMBER"), lambda row: "A Number" in str(row.response)),
        (Search(text="what is 12"), lambda row: "What is 12" in str(row.request)),
        (Search(text="100% _no"), lambda _: False),
        (Search(status_codes=(400, 599)), lambda row: row.status_code == 500),
        (Search(requester="bob"), lambda row: row.requester == "bob"),
        (Search(request_id="call-007"), lambda row: row.databricks_request_id == "call-007"),
        (
            Search(since=CALLS[25].request_time, until=CALLS[75].request_time),
            lambda row: CALLS[25].request_time <= row.request_time <= CALLS[75].request_time,
        ),
        (
            Search(
                text="number",
                status_codes=(200, 200),
                requester="ada",
            ),
            lambda row: (
                "A Number" in str(row.response)
                and row.status_code == 200
                and row.requester == "ada"
            ),
        ),
    ],
)
def test_filters_mean_the_same_in_table_and_spool(
    place: tuple[TableStore, Path], wanted: Search, expected: object
) -> None:
    store, spool = place
    matching = [row for row in CALLS[::-1] if expected(row)]  # type: ignore[operator]
    assert ids(search(store, spool, TABLE, wanted, 1000)) == ids(matching)
    assert ids(search(store, spool, TABLE, wanted, 3)) == ids(matching)[:3]


def test_a_call_shows_before_there_is_a_table(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=1 << 30)
    store = TableStore(str(tmp_path / "tables"))
    assert search(store, spool.folder, TABLE, Search(), 5) == []
    spool.stream(str(TABLE)).append(Record("call-000", ends=True, rows=(CALLS[0],)))
    assert search(store, spool.folder, TABLE, Search(), 5) == [CALLS[0]]
    spool.close()
