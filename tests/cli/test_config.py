"""`dropless config`, and `dropless serve --config`."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dropless.checkpoints.catalogue import default_model
from dropless.cli.main import app
from dropless.server.configuration.loading import parse
from tests.cli.conftest import Start
from tests.server.tiny_model import tiny_endpoint

RIGHT = "endpoints:\n  - name: a\n    served_entities: [{model: m}]\n"


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_check(tmp_path: Path) -> None:
    file = tmp_path / "dropless.yaml"
    file.write_text(RIGHT)
    assert run("config", "check", file) == (0, f"{file} is right. Endpoints: a.\n")
    file.write_text(RIGHT.replace("name", "nane") + "servr: {}\n")
    code, output = run("config", "check", file)
    assert code == 1
    assert output == (
        f"dropless: {file}:2: endpoints[0].name is missing\n"
        f"{file}:2: endpoints[0].nane is not known; did you mean 'name'?\n"
        f"{file}:4: servr is not known; did you mean 'server'?\n"
    )


def test_what_serve_does_is_printed_as_a_file_to_begin_with() -> None:
    code, output = run("config", "print")
    assert code == 0
    [endpoint] = parse(output, "printed").endpoints
    assert endpoint.name == default_model().name
    _, everything = run("config", "print", "--defaults")
    assert parse(everything, "printed") == parse(output, "printed")
    assert yaml.safe_load(everything)["endpoints"][0]["served_entities"][0]["engine"]["dtype"]


def test_what_a_file_comes_to(tmp_path: Path) -> None:
    file = tmp_path / "dropless.yaml"
    file.write_text(RIGHT)
    assert yaml.safe_load(run("config", "print", file)[1]) == yaml.safe_load(RIGHT)
    code, output = run("config", "print", file, "--defaults")
    assert code == 0
    assert yaml.safe_load(output)["server"]["port"] == 8000
    assert parse(output, "printed") == parse(RIGHT, "right")


@pytest.mark.parametrize("more", [["model"], ["--port", "1"], ["--threads", "2"]])
def test_a_file_says_everything(tmp_path: Path, more: list[str]) -> None:
    code, output = run("serve", "--config", tmp_path / "f.yaml", *more)
    assert code == 1
    assert "takes no model and no other options" in output


def test_serve_a_file(start: Start, tiny_model: Path, tmp_path: Path) -> None:
    endpoints = [tiny_endpoint(str(tiny_model), name) for name in ("one", "two")]
    document = {"server": {"port": 0}, "data": str(tmp_path / "data"), "endpoints": endpoints}
    (tmp_path / "dropless.yaml").write_text(yaml.safe_dump(document))
    process = start("serve", "--config", "dropless.yaml")
    assert process.stdout is not None
    printed = ""
    while "Ctrl-C stops" not in printed:
        line = process.stdout.readline()
        assert line, printed
        printed += line
    assert re.findall(r"(\w+) is served at", printed) == ["one", "two"]
    curl = next(line for line in printed.splitlines() if line.startswith("curl "))
    done = subprocess.run(["bash", "-c", curl], capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout)["model"] == "one"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_a_wrong_file_starts_nothing(start: Start, tmp_path: Path) -> None:
    (tmp_path / "dropless.yaml").write_text("server: {port: x}\n")
    process = start("serve", "--config", "dropless.yaml")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == 'dropless: dropless.yaml:1: server.port is "x"; it must be a valid integer\n'
