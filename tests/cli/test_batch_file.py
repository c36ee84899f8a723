"""The files of an offline batch: order, resumption, refusals."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropless.cli.batch_file import BatchFile
from dropless.errors import SettingsError

SETTINGS = {"model": "m", "sampling": {"temperature": 0.0}}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n{"prompt": "c"}')  # no newline at the end
    return path


def _lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_results_come_in_input_order(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    batch = BatchFile(source, out, SETTINGS)
    assert batch.total == 3
    assert [number for number, _ in batch.unfinished()] == [1, 3, 4]
    for number in (4, 1, 3):
        batch.add(number, {"text": f"answer {number}"})
    batch.finish()
    assert _lines(out) == [{"line": n, "text": f"answer {n}"} for n in (1, 3, 4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_killed_job_is_taken_up_without_its_half_line(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    first = BatchFile(source, out, SETTINGS)
    first.add(3, {"text": "done"})
    first.close()
    with first.partial_path.open("a") as partial:
        partial.write('{"line": 1, "te')  # killed here
    second = BatchFile(source, out, SETTINGS)
    assert second.done == 1
    assert [number for number, _ in second.unfinished()] == [1, 4]
    for number, _ in second.unfinished():
        second.add(number, {"text": "later"})
    second.finish()
    assert [line["text"] for line in _lines(out)] == ["later", "done", "later"]


def test_another_jobs_results_are_not_mixed_in(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    first = BatchFile(source, out, SETTINGS)
    first.add(1, {"text": "x"})
    first.close()
    with pytest.raises(SettingsError, match="another input, model or settings"):
        BatchFile(source, out, {"model": "other"})
    source.write_text('{"prompt": "changed"}\n')
    with pytest.raises(SettingsError, match="another input, model or settings"):
        BatchFile(source, out, SETTINGS)


def test_a_job_that_never_began_is_in_nobodys_way(source: Path, tmp_path: Path) -> None:
    BatchFile(source, tmp_path / "out.jsonl", {"model": "mistyped"}).close()
    assert BatchFile(source, tmp_path / "out.jsonl", SETTINGS).done == 0


def test_refusals(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    running = BatchFile(source, out, SETTINGS)
    with pytest.raises(SettingsError, match="another run"):
        BatchFile(source, out, SETTINGS)
    running.close()
    out.write_text("")
    with pytest.raises(SettingsError, match="exists already"):
        BatchFile(source, out, SETTINGS)
    with pytest.raises(SettingsError, match=r"missing\.jsonl"):
        BatchFile(tmp_path / "missing.jsonl", tmp_path / "new.jsonl", SETTINGS)
    with pytest.raises(SettingsError, match="cannot open"):
        BatchFile(source, tmp_path / "no" / "folder.jsonl", SETTINGS)


@given(st.integers(1, 30), st.integers(0, 2**32), st.floats(0, 1))
def test_wherever_it_is_cut_nothing_is_lost_or_doubled(
    tmp_path_factory: pytest.TempPathFactory, count: int, seed: int, kept_share: float
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    source, out = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(f'{{"prompt": "{n}"}}\n' for n in range(count)))
    order = random.Random(seed).sample(range(1, count + 1), count)
    batch = BatchFile(source, out, SETTINGS)
    for number in order:
        batch.add(number, {"text": "ü" * number})
    batch.close()
    content = batch.partial_path.read_bytes()
    batch.partial_path.write_bytes(content[: int(len(content) * kept_share)])
    again = BatchFile(source, out, SETTINGS)
    todo = [number for number, _ in again.unfinished()]
    assert len(todo) + again.done == count
    for number in todo:
        again.add(number, {"text": "ü" * number})
    again.finish()
    assert [(r["line"], r["text"]) for r in _lines(out)] == [
        (n, "ü" * n) for n in range(1, count + 1)
    ]
