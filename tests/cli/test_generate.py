"""`dropless generate` for real: answers, errors of single lines, being stopped and going on."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from dropless.cli.batch_run import parse_line, read_line
from dropless.errors import InvalidRequestError
from tests.cli.conftest import ENGINE, Start

LINES = [
    {"id": "a", "prompt": "Name three", "max_tokens": 4},
    {"messages": [{"role": "user", "content": "colours"}], "max_tokens": 4},
    {"id": 3, "prompt": [10, 11, 12], "max_tokens": 4, "logit_bias": {"20": 100}},
    {"id": 4, "prompt": "x", "temperature": -1},
    {"id": 5, "prompt": "long " * 3000},
]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read_results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_for_results(process: subprocess.Popen[str], partial: Path, count: int = 4) -> None:
    deadline = time.monotonic() + 120
    while not partial.exists() or partial.read_bytes().count(b"\n") <= count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_every_line_gets_its_result_in_order(
    start: Start, tiny_model: Path, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", LINES)
    with source.open("a") as file:
        file.write("\nno json\n")
    command = ("generate", source, "--model", tiny_model, "--max-tokens", "6", *ENGINE)
    process = start(*command)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.strip() == f"6 results in {tmp_path / 'in.answers.jsonl'}"
    results = read_results(tmp_path / "in.answers.jsonl")
    assert [r["line"] for r in results] == [1, 2, 3, 4, 5, 7]
    assert [r.get("id") for r in results] == ["a", None, 3, 4, 5, None]
    for result in results[:3]:
        assert result["completion_tokens"] <= 4
        assert result["finish_reason"] in ("stop", "length")
    assert results[2]["prompt_tokens"] == 3
    assert "temperature is -1" in results[3]["error"]
    assert "2048" in results[4]["error"]  # the model's context
    assert "not valid JSON" in results[5]["error"]

    again = start(*command)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 1
    assert "exists already" in errors


def test_a_stopped_run_goes_on_where_it_was(start: Start, tiny_model: Path, tmp_path: Path) -> None:
    count = 30
    prompts = [{"id": n, "prompt": f"Name {n}", "max_tokens": 50} for n in range(count)]
    source = write_lines(tmp_path / "in.jsonl", prompts)
    rows = ("--max-running-requests", "2")  # so that it can be stopped in the middle
    command = ("generate", source, "--model", tiny_model, "--seed", "1", *ENGINE, *rows)
    options = ("--temperature", "1")
    partial = tmp_path / "in.answers.jsonl.partial"
    kept: dict[int, dict[str, Any]] = {}
    for how in (signal.SIGINT, signal.SIGKILL):
        process = start(*command, *options)
        wait_for_results(process, partial, len(kept) + 4)
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
        if how == signal.SIGINT:
            assert process.returncode == 130
            assert "results are kept in" in errors
        results = {r["line"]: r for r in read_results(partial)[1:]}
        assert len(kept) < len(results) < count
        assert all(results[line] == result for line, result in kept.items())
        kept = results

    again = start(*command, *options)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    whole = read_results(tmp_path / "in.answers.jsonl")
    assert [r["id"] for r in whole] == list(range(count))
    assert all(whole[line - 1] == result for line, result in kept.items())
    assert not partial.exists()


def test_an_engine_that_dies_leaves_what_is_done(
    start: Start, tiny_model: Path, tmp_path: Path
) -> None:
    prompts = [{"prompt": f"Name {n}", "max_tokens": 50} for n in range(30)]
    source = write_lines(tmp_path / "in.jsonl", prompts)
    rows = ("--max-running-requests", "2")
    process = start("generate", source, "--model", tiny_model, *ENGINE, *rows)
    partial = tmp_path / "in.answers.jsonl.partial"
    wait_for_results(process, partial)
    for child in psutil.Process(process.pid).children():
        child.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "results are kept in" in errors
    assert "killed by SIGKILL" in errors.splitlines()[-1]
    assert len(read_results(partial)) > 4


DEFAULTS = {"max_tokens": 256, "temperature": 0.0}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("[]", '{"prompt": ...}'),
        ("{}", 'either "prompt" or "messages"'),
        ('{"prompt": "a", "messages": []}', 'either "prompt" or "messages"'),
        ('{"prompt": "a", "n": 2}', "n is not for batch files"),
        ('{"prompt": "a", "stream": true}', "stream is not for batch files"),
        ('{"prompt": ["a", "b"]}', "write one a line"),
        ('{"prompt": "a", "temperature": NaN}', "temperature"),
        ('{"prompt": "a", "temprature": 1}', "unknown field 'temprature'"),
        ('{"messages": [{"role": "tool", "content": ""}]}', "without tool_call_id"),
        ('{"messages": [], "tools": [{}]}', "tools is not for batch files"),
        ('{"prompt": "a"', "not valid JSON"),
    ],
)
def test_wrong_lines(line: str, complaint: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        parse_line(read_line(line.encode()), DEFAULTS)
    assert complaint in str(raised.value)


def test_a_line_overrides_the_defaults() -> None:
    params = parse_line({"prompt": "a", "temperature": 1.5, "n": 1}, DEFAULTS).params
    assert (params.temperature, params.max_tokens) == (1.5, 256)
    chat = {"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 7}
    assert parse_line(chat, DEFAULTS).params.max_tokens == 7
