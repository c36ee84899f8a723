"""Results on disk: kept at once, taken up again, never mixed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dropless.bench.study.data import Results, read_all
from dropless.errors import SettingsError

ABOUT = {"part": "capacity", "gpu": None, "torch": "2.11"}


def test_points_are_on_disk_at_once_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "data" / "capacity.json"
    results = Results(path, ABOUT)
    assert not path.exists()
    results.add({"tokens": 64, "us": 1.0})
    assert json.loads(path.read_text())["points"] == [{"tokens": 64, "us": 1.0}]
    again = Results(path, ABOUT)
    assert again.has(tokens=64)
    assert not again.has(tokens=64, us=2.0)
    assert not again.is_complete
    again.complete()
    assert Results(path, ABOUT).is_complete
    assert [path.name for path in path.parent.iterdir()] == ["capacity.json"]


def test_points_of_another_machine_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "capacity.json"
    Results(path, ABOUT).add({"tokens": 64})
    with pytest.raises(SettingsError, match=r"torch '2\.11' and not '2\.12'; remove it"):
        Results(path, {**ABOUT, "torch": "2.12"})


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"about": {}}', '{"about": 1, "points": []}'])
def test_a_file_that_is_no_data(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(SettingsError, match=r"x\.json is no data of `dropless study`"):
        read_all(tmp_path, "capacity")


def test_a_part_without_points_is_not_there_yet(tmp_path: Path) -> None:
    Results(tmp_path / "a.json", ABOUT).note("load_seconds", 1.0)
    Results(tmp_path / "b.json", {**ABOUT, "part": "parallel"}).add({"tokens": 1})
    assert read_all(tmp_path, "capacity") == []
    assert len(read_all(tmp_path, "parallel")) == 1
