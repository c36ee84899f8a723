"""From the spool into the tables: each row once, wherever the writer is stopped."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropless.tables import spool as spool_module
from dropless.tables import stream_writer
from dropless.tables.records import Record
from dropless.tables.spool import Spool
from dropless.tables.spool_folder import segments
from dropless.tables.stream_writer import StreamWriter
from dropless.tables.table_name import USAGE
from dropless.tables.table_store import TableStore
from tests.tables.made_up import LOST, TABLE, assert_once, ended, opened, statuses


class _Crash(BaseException):
    """Not an Exception: nothing in the writer may take it for a failure of the storage."""


@contextmanager
def crash_at(step: int) -> Iterator[None]:
    """Everything that the writer changes is a step; it dies right before or right after one."""
    taken = 0

    def before_and_after(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal taken
            taken += 1
            if taken == step:
                raise _Crash
            result = real(*args, **options)
            taken += 1
            if taken == step:
                raise _Crash
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TableStore, "commit", before_and_after(TableStore.commit))
        for name in ("replace", "unlink", "rmdir"):
            patch.setattr(Path, name, before_and_after(getattr(Path, name)))
        yield


@contextmanager
def small_pieces() -> Iterator[None]:
    """Segments of about two records, batches of about four."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "SEGMENT_BYTES", 300)
        patch.setattr(stream_writer, "BATCH_BYTES", 600)
        yield


def logged_session(folder: Path, records: list[Record]) -> Path:
    """The stream of a server that logged these and was killed."""
    spool = Spool(folder / "spool", max_bytes=1 << 30)
    stream = spool.stream(str(TABLE))
    for record in records:
        assert stream.append(record)
    spool.close()
    return stream.folder


# a ends at once, b late, c and d never: c is open over many segments, d at the end.
RECORDS = [
    opened("c"),
    opened("b"),
    opened("a"),
    ended("a"),
    *(ended(f"call-{i}") for i in range(3)),
    ended("b"),
    opened("d"),
]
EXPECTED = {"a": 200, "b": 200, "c": LOST, "d": LOST} | {f"call-{i}": 200 for i in range(3)}


@settings(max_examples=12)
@given(st.lists(st.integers(1, 40), max_size=4))
def test_each_row_is_written_once_wherever_writers_die(crashes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name, small_pieces():
        folder = Path(name)
        stream = logged_session(folder, RECORDS)
        assert len(segments(stream)) > 3
        for step in [*crashes, 0]:
            with crash_at(step):
                try:
                    if stream.exists():
                        StreamWriter(stream, TableStore(str(folder / "tables"))).finish()
                except _Crash:
                    continue
        assert not stream.exists()
        assert_once(folder / "tables", EXPECTED)


def test_a_stream_is_followed_while_it_grows(tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    spool = Spool(tmp_path / "spool", max_bytes=1 << 30)
    with small_pieces():
        stream = spool.stream(str(TABLE))
        writer = StreamWriter(stream.folder, TableStore(str(tables)))
        expected = {}
        for i in range(6):
            stream.append(opened(f"late-{i}"))
            stream.append(ended(f"call-{i}"))
            expected[f"call-{i}"] = 200
            if i > 2:
                stream.append(ended(f"late-{i - 3}"))
                expected[f"late-{i - 3}"] = 200
            writer.drain()
            assert_once(tables, expected)
            assert writer.pending_bytes() == 0
        assert len(segments(stream.folder)) == 1  # the others are in the tables
        spool.close()
        writer.finish()
    assert_once(tables, expected | {f"late-{i}": LOST for i in (3, 4, 5)})


def test_a_torn_record_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stream = logged_session(tmp_path, [ended("a"), opened("b"), ended("b")])
    [segment] = segments(stream)
    segment.path.write_bytes(segment.path.read_bytes()[:-7])
    StreamWriter(stream, TableStore(str(tmp_path / "tables"))).finish()
    assert_once(tmp_path / "tables", {"a": 200, "b": LOST})
    assert "is damaged from byte" in caplog.text


def test_damage_in_the_middle_costs_the_rest_of_its_segment(tmp_path: Path) -> None:
    with small_pieces():
        stream = logged_session(tmp_path, [ended(f"call-{i}") for i in range(9)])
        first = segments(stream)[0].path
        data = bytearray(first.read_bytes())
        data[20] ^= 1
        first.write_bytes(data)
        StreamWriter(stream, TableStore(str(tmp_path / "tables"))).finish()
    found = statuses(tmp_path / "tables")
    assert 5 <= len(found) < 9
    assert all(codes == [200] for codes in found.values())


def test_a_table_that_takes_no_rows_does_not_hold_up_the_others(tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    stream = logged_session(tmp_path, [opened("a"), ended("a"), opened("b")])
    obstacle = tables / TABLE.catalog
    tables.mkdir()
    obstacle.touch()  # a file where a folder should be
    writer = StreamWriter(stream, TableStore(str(tables)))
    for _ in range(2):
        with pytest.raises(Exception, match=r".") as caught:
            writer.finish()
        assert f"table {TABLE}" in caught.value.__notes__
        assert statuses(tables, USAGE) == {"a": [200], "b": [LOST]}
    obstacle.unlink()
    writer.finish()
    assert_once(tables, {"a": 200, "b": LOST})


def test_servers_that_share_tables_do_not_clash(tmp_path: Path) -> None:
    calls = [[f"{server}-{i}" for i in range(9)] for server in range(3)]

    def write(server: int) -> None:
        stream = logged_session(tmp_path / f"{server}", [ended(call) for call in calls[server]])
        StreamWriter(stream, TableStore(str(tmp_path / "tables"))).finish()

    with small_pieces():
        write(0)  # makes the tables
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(write, (1, 2)))
    assert_once(tmp_path / "tables", {call: 200 for part in calls for call in part})


def test_a_second_writer_of_one_stream_is_refused_by_the_table(tmp_path: Path) -> None:
    """Locks keep them apart; should they fail, the transaction does."""
    stores = [TableStore(str(tmp_path / "tables")) for _ in range(2)]
    rows = ended("a").rows[:1]
    stores[0].commit(TABLE, rows, "app", 1)
    stores[1].table(TABLE)
    stores[0].commit(TABLE, rows, "app", 2)
    with pytest.raises(Exception, match="Concurrent transaction"):
        stores[1].commit(TABLE, rows, "app", 2)
    assert stores[1].committed(TABLE, "app") == 2
