"""The writer process, and what a kill leaves: nothing is lost, nothing is there twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dropless.tables import writer_process
from dropless.tables.session_writer import finish_left_sessions
from dropless.tables.spool import Spool
from dropless.tables.spool_folder import sessions
from dropless.tables.table_name import USAGE
from dropless.tables.table_store import TableStore
from dropless.tables.writer import NICENESS
from dropless.tables.writer_process import WriterConfig, WriterProcess
from tests.tables.made_up import LOST, TABLE, assert_once, ended, opened, statuses

LOGGED_S = 0.3


def wait_until(true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def log_and_kill(folder: Path, *, kill_writer: bool) -> dict[str, set[int]]:
    """Of each call that the killed process had time to tell of, which statuses it may have."""
    command = [sys.executable, "-m", "tests.tables.logging_process"]
    process = subprocess.Popen(
        [*command, str(folder / "spool"), str(folder / "tables")], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    writer = psutil.Process(int(process.stdout.readline().split()[1]))
    told = bytearray(process.stdout.read1(1 << 20))
    began = time.monotonic()
    while time.monotonic() < began + LOGGED_S:
        told += process.stdout.read1(1 << 20)
    process.kill()
    if kill_writer:
        writer.kill()
    told += process.stdout.read()
    process.stdout.close()
    process.wait()
    wait_until(lambda: not writer.is_running())  # a killed one holds its session till it is gone
    expected: dict[str, set[int]] = {}
    for line in told.decode().splitlines():
        what, call = line.split()
        # The kill may have come between a record and its line.
        expected[call] = {200} if what == "end" else {LOST, 200}
    return expected


@pytest.mark.parametrize("kill_writer", [False, True])
def test_a_killed_process_loses_no_row_and_writes_none_twice(
    tmp_path: Path, kill_writer: bool
) -> None:
    expected = log_and_kill(tmp_path, kill_writer=kill_writer)
    assert len(expected) > 100
    if kill_writer:
        assert sessions(tmp_path / "spool")
        finish_left_sessions(tmp_path / "spool", TableStore(str(tmp_path / "tables")))
    assert not sessions(tmp_path / "spool")
    for name in (TABLE, USAGE):
        found = statuses(tmp_path / "tables", name)
        assert all(len(codes) == 1 for codes in found.values())
        assert expected.keys() <= found.keys()
        assert len(found) <= len(expected) + 1  # one may have been logged and not told
        assert all(set(found[call]) <= may for call, may in expected.items())


def test_rows_come_into_their_tables_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_process, "_RESTART_S", 0.1)
    spool = Spool(tmp_path / "spool", max_bytes=1 << 30)
    config = WriterConfig(
        str(spool.folder), spool.session.name, str(tmp_path / "tables"), {}, 0.1, {}
    )
    writer = WriterProcess(config)
    stream = spool.stream(str(TABLE))
    stream.append(opened("a"))
    stream.append(opened("b"))
    stream.append(ended("a"))
    wait_until(lambda: (report := writer.report()) is not None and report.rows == 2)
    assert_once(tmp_path / "tables", {"a": 200})
    [process] = [p for p in psutil.Process().children() if "dropless.tables.writer" in p.cmdline()]
    assert process.nice() == min(19, os.nice(0) + NICENESS)
    process.kill()  # another one starts, and goes on where this one was
    stream.append(ended("c"))
    wait_until(lambda: "c" in statuses(tmp_path / "tables"))
    stream.append(ended("b"))
    spool.close()
    assert writer.close(timeout_s=20)
    assert_once(tmp_path / "tables", {"a": 200, "b": 200, "c": 200})
    assert not sessions(tmp_path / "spool")


def test_a_writer_leaves_sessions_alone_that_others_own(tmp_path: Path) -> None:
    store = TableStore(str(tmp_path / "tables"))
    owner = Spool(tmp_path / "spool", max_bytes=1 << 30)
    owner.stream(str(TABLE)).append(ended("a"))
    assert finish_left_sessions(tmp_path / "spool", store) == 0
    assert sessions(tmp_path / "spool") == [owner.session]
    owner.close()
    assert finish_left_sessions(tmp_path / "spool", store) == 2
    assert sessions(tmp_path / "spool") == []


def test_a_failing_table_is_reported(tmp_path: Path) -> None:
    (tmp_path / "tables").touch()  # a file where the folder should be
    spool = Spool(tmp_path / "spool", max_bytes=1 << 30)
    config = WriterConfig(
        str(spool.folder), spool.session.name, str(tmp_path / "tables"), {}, 0.1, {}
    )
    writer = WriterProcess(config)
    spool.stream(str(TABLE)).append(ended("a"))
    wait_until(lambda: (report := writer.report()) is not None and report.error is not None)
    report = writer.report()
    assert report is not None
    assert str(TABLE) in str(report.error)
    assert report.pending_bytes > 0
    (tmp_path / "tables").unlink()
    spool.close()
    assert writer.close(timeout_s=20)
    assert_once(tmp_path / "tables", {"a": 200})
