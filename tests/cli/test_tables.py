"""`dropless tables`: a table on the disk, and what each command says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

from dropless.cli.main import app
from dropless.tables.records import Record
from dropless.tables.spool import Spool
from dropless.tables.table_name import USAGE
from dropless.tables.table_store import TableStore
from tests.tables.made_up import NOON, TABLE, chat, payload, usage

run = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"}).invoke
COMMANDS = ("list", "show", "query", "tail", "export", "compact", "vacuum")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's data folder: two calls in the table, one on its way."""
    folder = tmp_path_factory.mktemp("data")
    store = TableStore(str(folder / "tables"))
    store.commit(TABLE, [payload("req-1", **chat("What is a river?", "A\nstream."))], "app", 1)
    store.commit(TABLE, [payload("req-2", time=NOON + 1, status=500, requester=None)], "app", 2)
    store.commit(USAGE, [usage("req-1")], "app", 1)
    spool = Spool(folder / "spool", max_bytes=1 << 30)
    waiting = payload("req-3", time=NOON + 2, **chat("\x1b[31mRed?", "Yes"))
    spool.stream(str(TABLE)).append(Record("req-3", ends=True, rows=(waiting,)))
    spool.close()
    return folder


def output(data: Path, *arguments: str) -> str:
    result = run(app, ["tables", *arguments, "--data", str(data)])
    assert result.exit_code == 0, result.output
    return result.stdout


def error(data: Path, *arguments: str) -> str:
    result = run(app, ["tables", *arguments, "--data", str(data)])
    assert result.exit_code != 0
    return result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command: str) -> None:
    text = run(app, ["tables", command, "--help"]).stdout
    assert f"dropless tables {command}" in text


def test_list(data: Path) -> None:
    text = output(data, "list")
    [line] = [line for line in text.splitlines() if str(TABLE) in line]
    assert line.split()[1:2] == ["2"]
    assert "2024-10-04 12:00:00" in line
    assert str(USAGE) in text
    assert "in the spool" in text


def test_show(data: Path) -> None:
    text = output(data, "show", "tiny")
    assert "logging_error_codes    ARRAY<STRING>" in text
    assert "delta.enableChangeDataFeed = true" in text
    assert "2024-10-04" in text
    assert "MAP<STRING, STRING>" in output(data, "show", "endpoint_usage")


def test_query_as_a_table(data: Path) -> None:
    sql = "SELECT status_code AS code, count(*) AS calls FROM main.default.tiny_payload GROUP BY 1"
    text = output(data, "query", sql + " ORDER BY 1")
    assert [line.split() for line in text.splitlines()] == [
        ["code", "calls"],
        ["200", "2"],  # one of them still in the spool
        ["500", "1"],
        ["(2", "rows)"],
    ]


def test_a_wide_result_has_its_columns_one_below_the_other(data: Path) -> None:
    text = output(data, "query", "FROM tiny_payload WHERE databricks_request_id = 'req-1'")
    lines = text.splitlines()
    assert lines[0].split() == ["databricks_request_id", "req-1"]
    assert "requester              ada" in lines
    assert lines[-1] == "(1 row)"


def test_query_for_programs(data: Path, tmp_path: Path) -> None:
    sql = (
        "SELECT p.databricks_request_id AS id, p.request_time, logging_error_codes, usage_context "
        "FROM tiny_payload p JOIN endpoint_usage USING (databricks_request_id)"
    )
    assert json.loads(output(data, "query", sql, "--format", "json")) == {
        "id": "req-1",
        "request_time": "2024-10-04T12:00:00+00:00",
        "logging_error_codes": [],
        "usage_context": {"team": "red"},
    }
    out = tmp_path / "out.csv"
    assert output(data, "query", sql, "--format", "csv", "--out", str(out)) == ""
    assert out.read_text().splitlines()[1:] == [
        'req-1,2024-10-04T12:00:00+00:00,[],"{""team"": ""red""}"'
    ]
    out = tmp_path / "out.parquet"
    output(data, "query", sql, "--format", "parquet", "--out", str(out))
    assert duckdb.execute("SELECT id FROM read_parquet(?)", [str(out)]).fetchall() == [("req-1",)]
    assert "--out" in error(data, "query", sql, "--format", "parquet")


def test_tail_shows_what_is_on_its_way_and_no_control_characters(data: Path) -> None:
    lines = output(data, "tail").splitlines()
    assert [line.split()[2:4] for line in lines] == [["200", "ada"], ["500", "-"], ["200", "ada"]]
    assert lines[0].endswith("req-1  What is a river? → A stream.")
    assert lines[2].endswith("[31mRed? → Yes")
    assert "\x1b" not in lines[2]
    assert output(data, "tail", "tiny", "--text", "STREAM", "-n", "1").count("\n") == 1


def test_tail_follows(data: Path) -> None:
    spool = Spool(data / "spool", max_bytes=1 << 30)
    command = [sys.executable, "-u", "-m", "dropless.cli.main", "tables", "tail", "--follow"]
    process = subprocess.Popen([*command, "--data", str(data)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    row = payload("req-9", time=NOON + 9)
    spool.stream(str(TABLE)).append(Record("req-9", ends=True, rows=(row,)))
    assert "req-9" in process.stdout.readline()
    process.kill()
    process.wait()
    process.stdout.close()
    spool.close()


def test_export(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "chats.jsonl"
    shown = output(data, "export", "--chat", str(out), "--where", "request LIKE '%river%'")
    assert shown == f"1 conversations in {out}\n"
    assert json.loads(out.read_text()) == {
        "messages": [
            {"role": "user", "content": "What is a river?"},
            {"role": "assistant", "content": "A\nstream."},
        ]
    }


def test_compact_and_vacuum(data: Path) -> None:
    assert f"{TABLE}: 2 files became 1" in output(data, "compact", "tiny")
    assert f"{TABLE}: 2 files would go" in output(data, "vacuum", "tiny", "--hours=0", "--dry-run")
    assert f"{TABLE}: 0 files are gone" in output(data, "vacuum", "tiny")
    assert f"{TABLE}: 2 files are gone" in output(data, "vacuum", "tiny", "--hours", "0")
    assert len(output(data, "tail").splitlines()) >= 3


def test_a_configuration_says_where_tables_are(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "dropless.yaml"
    file.write_text(f"tables: {{location: {data / 'tables'}, spool: {data / 'spool'}}}")
    result = run(app, ["tables", "tail", "--config", str(file)])
    assert "req-1" in result.stdout
    assert "req-3" in result.stdout  # from its spool


def test_errors_say_what_there_is(data: Path, tmp_path: Path) -> None:
    assert "The columns of main.default.tiny_payload are" in error(
        data, "query", "SELECT nosuch FROM tiny_payload"
    )
    assert "there is no table 'other'; the tables are: main.default.tiny" in error(
        data, "show", "other"
    )
    assert "there are no tables in" in error(tmp_path, "list")
