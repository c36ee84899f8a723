"""The command line as a whole: help that teaches, fast start, errors in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from dropless import __version__
from dropless.cli.engine_options import OPTIONS
from dropless.cli.main import app
from dropless.engine.config import EngineConfig

COMMANDS = ("serve", "chat", "generate", "models", "pull", "plan", "bench")
run = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command: str) -> None:
    result = run(app, [command, "--help"])
    assert result.exit_code == 0
    examples = [line for line in result.output.splitlines() if line.strip().startswith("dropless ")]
    assert len(examples) >= 2
    assert any(line.strip().startswith(f"dropless {command}") for line in examples)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_in_the_help_are_understood(command: str) -> None:
    """Each example parses: `--help` behind it shows that its options and values exist."""
    for line in run(app, [command, "--help"]).output.splitlines():
        if line.strip().startswith(f"dropless {command}"):
            arguments = [word.strip('"') for word in line.split()[1:]]
            assert run(app, [*arguments, "--help"]).exit_code == 0, line


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (
            "dropless dropless.engine.client dropless.server.app dropless.server.serve"
            " dropless.cli.local_engine",
            "torch",
        ),
        ("dropless.cli.main", "torch fastapi httpx zmq matplotlib tokenizers"),
    ],
)
def test_what_an_import_does_not_bring(modules: str, absent: str) -> None:
    """Help is quick, and the HTTP process stays small."""
    code = f"""
import importlib, sys
for name in {modules.split()}:
    importlib.import_module(name)
    print(*(f"{{name}} brings {{m}}" for m in {absent.split()} if m in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_version() -> None:
    assert run(app, ["--version"]).output.strip() == f"dropless {__version__}"


def test_an_error_is_one_line_and_exit_status_1() -> None:
    result = run(app, ["bench"])
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "--url" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("arguments", [["--debug", "bench"], ["bench", "--debug"]])
def test_debug_shows_where_an_error_came_from(arguments: list[str]) -> None:
    result = run(app, arguments)
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "SettingsError"


def test_engine_options_are_fields_of_the_configuration_and_few() -> None:
    fields = set(EngineConfig.__struct_fields__)
    named = {name.removeprefix("no_") for name in OPTIONS}
    assert named <= fields
    assert fields - named == {"model_path", "model_id"}  # the model argument gives these
    assert len(OPTIONS) < 25
