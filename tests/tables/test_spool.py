"""The spool: what a full disk, a bound and a lost folder do. Never is anything raised."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dropless.errors import TableError
from dropless.tables import spool as spool_module
from dropless.tables.records import Record
from dropless.tables.spool import Spool
from dropless.tables.spool_folder import segments
from dropless.tables.stream_log import StreamLog
from tests.tables.made_up import ended, opened

NAME = "main.default.tiny_payload"


@pytest.fixture
def make_spool(tmp_path: Path) -> Iterator[Callable[..., Spool]]:
    made: list[Spool] = []

    def make(max_bytes: int = 1 << 30) -> Spool:
        made.append(Spool(tmp_path / "spool", max_bytes=max_bytes, sync_s=0.01))
        return made[-1]

    yield make
    for spool in made:
        spool.close()


def read(folder: Path) -> list[Record]:
    return [record for record, _ in StreamLog(folder).read(0, 1 << 40, ended=True).records]


@pytest.fixture
def no_retry_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_RETRY_S", 0.0)


def test_records_come_back_in_order_over_many_segments(
    make_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 1000)
    spool = make_spool()
    stream = spool.stream(NAME)
    records = [record(f"call-{i}") for i in range(20) for record in (opened, ended)]
    assert all(stream.append(record) for record in records)
    assert len(segments(stream.folder)) > 3
    assert read(stream.folder) == records
    assert spool.counters.records == 40
    assert spool.counters.dropped == 0


def test_the_spool_is_private(make_spool: Callable[..., Spool]) -> None:
    spool = make_spool()
    stream = spool.stream(NAME)
    stream.append(ended("a"))
    for path in (spool.folder, spool.session, stream.folder, segments(stream.folder)[0].path):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.usefixtures("no_retry_delay")
def test_a_full_disk_costs_rows_and_nothing_else(
    make_spool: Callable[..., Spool],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spool = make_spool()
    stream = spool.stream(NAME)
    assert stream.append(ended("a"))
    real = os.write

    def half(descriptor: int, data: bytes) -> int:
        return real(descriptor, bytes(data[: len(data) // 2]))

    def none(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for write in (half, none, half):
        monkeypatch.setattr(os, "write", write)
        assert not stream.append(ended("lost"))
    monkeypatch.setattr(os, "ftruncate", none)  # not even that
    monkeypatch.setattr(os, "write", half)
    assert not stream.append(ended("lost"))
    assert spool.counters.dropped == 4
    assert spool.counters.error is not None
    monkeypatch.undo()
    monkeypatch.setattr(spool_module, "_RETRY_S", 0.0)
    assert stream.append(ended("b"))
    assert spool.counters.error is None
    assert [record.call_id for record in read(stream.folder)] == ["a", "b"]
    complaints = [r for r in caplog.records if "calls go on without a row" in r.message]
    assert len(complaints) == 1  # not one for each row


@pytest.mark.usefixtures("no_retry_delay")
def test_a_lost_folder_costs_rows_and_nothing_else(make_spool: Callable[..., Spool]) -> None:
    spool = make_spool()
    shutil.rmtree(spool.folder)
    assert not spool.stream(NAME).append(ended("a"))
    assert "No such file" in str(spool.counters.error)


@pytest.mark.usefixtures("no_retry_delay")
def test_a_full_spool_drops_the_newest_until_there_is_room(
    make_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 1000)
    spool = make_spool(max_bytes=3000)
    stream = spool.stream(NAME)
    kept = [stream.append(ended(f"call-{i}")) for i in range(50)]
    assert kept.index(False) == sum(kept)  # from the first that is dropped on, all are
    assert 2000 < sum(s.path.stat().st_size for s in segments(stream.folder)) < 4500
    assert "most of 3000 bytes" in str(spool.counters.error)
    for segment in segments(stream.folder)[:2]:
        segment.path.unlink()
    assert stream.append(ended("later"))


def test_after_a_failure_it_is_not_tried_at_once(
    make_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = make_spool()
    stream = spool.stream(NAME)
    stream.append(ended("a"))
    tries = []

    def fail(descriptor: int, _: bytes) -> int:
        tries.append(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "write", fail)
    for _ in range(100):
        assert not stream.append(ended("b"))
    assert len(tries) == 1
    assert spool.counters.dropped == 100


def test_a_folder_that_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TableError, match="cannot keep the spool of the inference tables in"):
        Spool(tmp_path / "file" / "spool", max_bytes=1000)
