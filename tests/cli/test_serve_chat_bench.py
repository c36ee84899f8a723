"""`dropless serve`, and `chat` and `bench` with it and with engines of their own, for real."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import ENGINE, Start


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and what it printed until it was ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dropless.cli.main", "serve", tiny_model, "--port", "0", *ENGINE],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    printed = ""
    while "Ctrl-C stops" not in printed:
        line = process.stdout.readline()
        assert line, printed
        printed += line
    yield process, printed
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def url(served: tuple[subprocess.Popen[str], str]) -> str:
    found = re.search(r"served at (http://\S+)", served[1])
    assert found
    return found[1]


def test_serve_prints_a_curl_line_that_works(served: tuple[subprocess.Popen[str], str]) -> None:
    curl = next(line for line in served[1].splitlines() if line.startswith("curl "))
    done = subprocess.run(["bash", "-c", curl], capture_output=True, check=True, timeout=60)
    answer = json.loads(done.stdout)
    assert answer["model"] == "tiny"
    assert answer["choices"][0]["message"]["content"]


def test_the_http_process_stays_small(served: tuple[subprocess.Popen[str], str]) -> None:
    assert psutil.Process(served[0].pid).memory_info().rss < 150e6


def test_serve_on_a_port_in_use_is_one_line(start: Start, url: str, tiny_model: Path) -> None:
    port = url.rsplit(":", 1)[1]
    process = start("serve", tiny_model, "--port", port)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert f"port {port} on 127.0.0.1 is in use" in errors


def test_serve_stops_at_ctrl_c_while_it_loads(start: Start, tiny_model: Path) -> None:
    process = start("serve", tiny_model, "--port", "0", *ENGINE)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors


@pytest.mark.parametrize("where", ["server", "own engine"])
def test_chat_answers_and_times(start: Start, url: str, tiny_model: Path, where: str) -> None:
    options = ["--url", url] if where == "server" else [str(tiny_model), *ENGINE]
    process = start("chat", *options, "--seed", "3", "--max-tokens", "20")
    output, errors = process.communicate("Name three\n/reset\n/exit\n", timeout=120)
    assert process.returncode == 0, errors
    assert "tiny" in output.splitlines()[0]
    assert re.search(r"\d+ tokens, [\d.]+ tokens/s, first after [\d.]+ s", output)
    assert "starts over" in output


def test_chat_shows_the_servers_own_words(start: Start, url: str) -> None:
    process = start("chat", "--url", url)
    output, _ = process.communicate("refuse this\n/exit\n", timeout=60)
    assert "the template does not like this (400)" in " ".join(output.split())
    assert "{" not in output


def test_ctrl_c_stops_the_answer_and_not_the_chat(start: Start, url: str) -> None:
    process = start("chat", "--url", url, "--seed", "3", "--temperature", "1")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("Name three\n")
    process.stdin.flush()
    shown: list[str] = []
    reader = threading.Thread(target=lambda: shown.extend(iter(lambda: process.stdout.read(1), "")))
    reader.start()
    deadline = time.monotonic() + 60
    while len("".join(shown).partition("> ")[2]) < 20:
        assert time.monotonic() < deadline, "".join(shown)
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    while "stopped" not in "".join(shown):
        assert time.monotonic() < deadline, "".join(shown)
        time.sleep(0.01)
    process.stdin.write("/help\n/exit\n")
    process.stdin.flush()
    reader.join(60)
    assert process.wait(60) == 0
    assert "/system TEXT" in "".join(shown)


@pytest.mark.parametrize("where", ["server", "own engine"])
def test_bench_measures(
    start: Start, url: str, tiny_model: Path, tmp_path: Path, where: str
) -> None:
    target = ["--url", url] if where == "server" else ["--offline", str(tiny_model), *ENGINE]
    sizes = ["--requests", "4", "--concurrency", "2", "--input-len", "20", "--output-len", "5"]
    options = ["--slo", "ttft=60000,tpot=60000", "--json", "run.json"]
    process = start("bench", *target, *sizes, *options)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "TTFT" in output
    document = json.loads((tmp_path / "run.json").read_text())
    assert document["summary"]["completed"] == 4


def test_bench_says_that_nobody_answers(start: Start) -> None:
    process = start("bench", "--url", "http://127.0.0.1:9")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "is a server running there?" in errors
