"""Reports: what is printed and written says what was measured."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from dropless.bench.metrics import RequestRecord, ServiceLevel, summarize
from dropless.bench.report import tables, write_json, write_plot
from dropless.errors import SettingsError

RECORDS = [
    RequestRecord(0, 0.0, 1.0, [0.25, 0.5, 1.0], 10, 3),
    RequestRecord(1, 0.5, 1.5, [1.0, 1.5], 20, 2),
    RequestRecord(2, 0.6, 0.7, error="429: the queue is full"),
]


def _printed(level: ServiceLevel | None) -> str:
    screen = io.StringIO()
    Console(file=screen, width=100).print(tables(summarize(RECORDS, level), level))
    return screen.getvalue()


def test_the_table_shows_failures_and_goodput() -> None:
    text = _printed(ServiceLevel(ttft_ms=300))
    assert "2 completed, 1 failed" in text
    assert "1 failed: 429: the queue is full" in text
    assert "33.3% within TTFT 300 ms" in text
    assert "375.0" in text  # mean TTFT of 250 and 500 ms
    assert "goodput" not in _printed(None)


def test_a_run_of_failures_prints() -> None:
    screen = io.StringIO()
    Console(file=screen).print(tables(summarize(RECORDS[2:])))
    assert "0 completed" in screen.getvalue()


def test_json_holds_settings_summary_and_every_request(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, summarize(RECORDS), RECORDS, {"trace": Path("a.csv"), "rate": 2.0})
    document = json.loads(path.read_text())
    assert document["settings"] == {"trace": "a.csv", "rate": 2.0}
    assert document["summary"]["ttft"]["mean"] == pytest.approx(375)
    assert [request["error"] for request in document["requests"]] == [
        None,
        None,
        "429: the queue is full",
    ]


@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize("records", [RECORDS, RECORDS[2:]], ids=["mixed", "failures"])
def test_a_plot_is_drawn(tmp_path: Path, suffix: str, records: list[RequestRecord]) -> None:
    path = tmp_path / f"run.{suffix}"
    write_plot(path, summarize(records), records)
    assert path.stat().st_size > 5000


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    summary = summarize(RECORDS)
    with pytest.raises(SettingsError, match="cannot write"):
        write_json(tmp_path / "no" / "run.json", summary, RECORDS, {})
    with pytest.raises(SettingsError, match="cannot write"):
        write_plot(tmp_path / "run.nonsense", summary, RECORDS)
