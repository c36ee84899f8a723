"""Compaction, retention and vacuum."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest

from dropless.tables import maintenance
from dropless.tables.locks import try_lock
from dropless.tables.overview import overview
from dropless.tables.table_name import USAGE
from dropless.tables.table_store import TableStore
from tests.tables.made_up import NOON, TABLE, payload, statuses, usage

DAY_US = 86_400_000_000
TODAY = datetime.datetime.now(datetime.UTC).date()
NOW = int(datetime.datetime.now(datetime.UTC).timestamp()) * 1_000_000
OLD = datetime.date(2024, 10, 4)  # of NOON


@pytest.fixture
def store(tmp_path: Path) -> TableStore:
    return TableStore(str(tmp_path / "tables"))


def fill(store: TableStore, commits: int, time: int, prefix: str) -> None:
    for i in range(commits):
        store.commit(TABLE, [payload(f"{prefix}-{i}", time=time)], prefix, i)


def files(store: TableStore) -> dict[datetime.date | None, int]:
    return {day: part.files for day, part in overview(store, TABLE).days.items()}


def test_days_with_many_small_files_are_compacted(
    store: TableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "MANY_FILES", 4)
    fill(store, 4, NOON, "old")
    fill(store, 3, NOW, "new")
    assert maintenance.compact_small(store, TABLE) == maintenance.Compaction(4, 1)
    assert files(store) == {OLD: 1, TODAY: 3}
    assert maintenance.compact_small(store, TABLE) == maintenance.Compaction(0, 0)
    assert maintenance.compact_all(store, TABLE, before=TODAY) == maintenance.Compaction(0, 0)
    assert maintenance.compact_all(store, TABLE) == maintenance.Compaction(3, 1)
    assert len(statuses(Path(store.location))) == 7


def test_vacuum_deletes_what_no_version_needs(store: TableStore) -> None:
    fill(store, 3, NOON, "a")
    maintenance.compact_all(store, TABLE)
    assert maintenance.vacuum(store, TABLE) == []  # versions of the last two days need them
    assert len(maintenance.vacuum(store, TABLE, hours=0, dry_run=True)) == 3
    assert len(list(Path(store.location).glob("**/*.parquet"))) == 4
    maintenance.vacuum(store, TABLE, hours=0)
    assert len(list(Path(store.location).glob("**/*.parquet"))) == 1
    assert len(statuses(Path(store.location))) == 3


def test_the_daily_round(store: TableStore, tmp_path: Path) -> None:
    fill(store, 2, NOON, "old")
    fill(store, 2, NOW - 2 * DAY_US, "recent")
    fill(store, 2, NOW, "new")
    store.commit(USAGE, [usage("a")], "app", 1)
    lock_file = tmp_path / "maintenance.lock"
    lock = try_lock(lock_file)
    assert lock is not None
    tables = {str(TABLE): 30, str(USAGE): None, "main.default.other_payload": 1}
    maintenance.keep_tidy(store, tables, lock)  # the round of today is done
    assert sum(files(store).values()) == 6
    os.utime(lock_file, (0, 0))
    maintenance.keep_tidy(store, tables, lock)
    recent = TODAY - datetime.timedelta(days=2)
    assert files(store) == {recent: 1, TODAY: 2}  # old rows are gone, a day that is over is one
    assert lock_file.stat().st_mtime > 1
    assert overview(store, USAGE).whole.rows == 1
    os.close(lock)


def test_retention_counts_whole_days(store: TableStore) -> None:
    fill(store, 1, NOON, "a")
    maintenance.delete_old_rows(store, TABLE, 1, OLD + datetime.timedelta(days=1))
    assert overview(store, TABLE).whole.rows == 1
    maintenance.delete_old_rows(store, TABLE, 1, OLD + datetime.timedelta(days=2))
    assert overview(store, TABLE).whole.rows == 0


def test_another_writer_may_append_meanwhile(store: TableStore) -> None:
    fill(store, 3, NOON, "a")
    other = TableStore(store.location)
    other.table(TABLE)
    maintenance.compact_all(store, TABLE)
    other.commit(TABLE, [payload("b")], "b", 1)
    assert len(statuses(Path(store.location))) == 4
