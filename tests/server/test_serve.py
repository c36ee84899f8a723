"""The server's life: what it prints, how it starts, how it stops."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil

from tests.server.server_process import ServerProcess
from tests.server.tiny_model import MODEL_ID

StartServer = Callable[..., ServerProcess]

ASKED: Any = {"model": MODEL_ID, "prompt": "hi", "max_tokens": 1900, "ignore_eos": True}


def printed(server: ServerProcess) -> str:
    deadline = time.monotonic() + 10
    while "Ctrl-C stops" not in (text := "".join(server.output)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return text


def test_what_it_prints_works(start_server: StartServer) -> None:
    text = printed(start_server(max_model_len=256).wait_until_ready())  # answers end soon
    curl = next(line for line in text.splitlines() if line.startswith("curl "))
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, check=True, timeout=60)
    assert json.loads(answer.stdout)["choices"][0]["message"]["content"]
    program = text[text.index("from openai") : text.index("Ctrl-C")]
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert run.returncode == 0, run.stderr.decode()
    assert run.stdout


def test_a_port_in_use_stops_it_before_the_model_loads(server: ServerProcess) -> None:
    began = time.monotonic()
    module = "tests.server.run_server"
    second = subprocess.run(
        [sys.executable, "-m", module, "/no/such/model", json.dumps({"port": server.port})],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode != 0
    assert f"port {server.port} on 127.0.0.1 is in use by another program" in second.stderr
    assert time.monotonic() - began < 10


def test_a_model_that_does_not_load_ends_it(start_server: StartServer) -> None:
    server = start_server(tensor_parallel_size=3)
    assert server.wait(60) != 0
    assert "Error: " in "".join(server.errors)


def test_while_it_loads_it_says_so_and_one_signal_stops_it(start_server: StartServer) -> None:
    server = start_server()
    health = server.health()
    assert (health.status_code, health.json()["state"]) == (503, "starting")
    response = httpx.post(f"{server.url}/v1/completions", json=ASKED)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    check_stopped_by(server.wait_until_ready(), signal.SIGINT)


def check_stopped_by(server: ServerProcess, number: signal.Signals) -> None:
    engine = server.engine_process()
    server.signal(number)
    assert server.wait(5) == 0
    assert not engine.is_running()
    assert "Traceback" not in "".join(server.errors)


def test_a_signal_while_it_loads_stops_it(start_server: StartServer) -> None:
    server = start_server()
    assert server.health().status_code == 503
    engine = server.engine_process()
    server.signal()
    assert server.wait(5) == 0
    assert not engine.is_running()


def test_running_requests_finish_first(start_server: StartServer) -> None:
    server = start_server(limits={"shutdown_grace_s": 30}).wait_until_ready()
    asked = {**ASKED, "max_tokens": 200}
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(httpx.post, f"{server.url}/v1/completions", json=asked, timeout=60)
        server.wait_until_running()
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert answer.result(60).json()["usage"]["completion_tokens"] == 200
    assert time.monotonic() - began < 30
    assert server.wait(5) == 0
    assert "Traceback" not in "".join(server.errors)


def test_after_the_grace_requests_get_an_error(start_server: StartServer) -> None:
    server = start_server(limits={"shutdown_grace_s": 1}).wait_until_ready()

    def ask(stream: bool) -> httpx.Response:
        body = {**ASKED, "stream": stream, "n": 20}
        return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)

    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(ask, stream) for stream in (False, True)]
        server.wait_until_running(40)
        server.signal()
        whole, streamed = (answer.result(10) for answer in answers)
    assert server.wait(10) == 0
    assert whole.status_code == 503
    assert "the server is stopping" in whole.json()["error"]["message"]
    assert streamed.status_code == 200
    last = streamed.text.rstrip().rsplit("\n\n", 1)[-1]
    assert "the server is stopping" in json.loads(last.removeprefix("data: "))["error"]["message"]


def test_the_second_signal_stops_it_at_once(start_server: StartServer) -> None:
    server = start_server(limits={"shutdown_grace_s": 60}).wait_until_ready()
    engine = server.engine_process()
    with ThreadPoolExecutor(1) as thread:
        body = {**ASKED, "n": 20}
        thread.submit(httpx.post, f"{server.url}/v1/completions", json=body, timeout=60)
        server.wait_until_running()
        server.signal()
        time.sleep(0.3)
        assert server.process.poll() is None
        server.signal()
        server.wait(3)
    psutil.wait_procs([engine], timeout=2)
    assert not engine.is_running()
