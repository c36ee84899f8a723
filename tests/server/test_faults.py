"""Clients and engines that fail: nothing is lost, nothing is left running."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server.server_process import ServerProcess
from tests.server.tiny_model import MODEL_ID

StartServer = Callable[..., ServerProcess]

LONG = 1900
ASKED: Any = {"model": MODEL_ID, "prompt": "hi", "max_tokens": LONG, "ignore_eos": True}


@pytest.fixture(scope="module")
def impatient(model_folder: Path) -> Iterator[ServerProcess]:
    """Waits for nobody who does not read or write."""
    server = ServerProcess(model_folder, limits={"stalled_client_s": 1.0, "body_timeout_s": 0.3})
    yield server.wait_until_ready()
    server.close()


@pytest.fixture(scope="module")
def narrow(model_folder: Path) -> Iterator[ServerProcess]:
    """Has room for two requests."""
    server = ServerProcess(model_folder, max_running_requests=1, max_waiting_requests=1)
    yield server.wait_until_ready()
    server.close()


@pytest.fixture(scope="module")
def mortal(model_folder: Path) -> Iterator[ServerProcess]:
    """Its engine is killed, and comes back."""
    server = ServerProcess(model_folder)
    yield server.wait_until_ready()
    server.close()


def post_raw(server: ServerProcess, body: dict[str, Any], **options: int) -> socket.socket:
    """A connection with the request sent and nothing read."""
    connection = socket.socket()
    for name, value in options.items():
        connection.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    connection.connect(("127.0.0.1", server.port))
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: [::1]\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def read_to_end(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"n": 4}, {"n": 4, "stream": True}])
def test_a_client_that_leaves_ends_its_work(server: ServerProcess, fields: dict[str, Any]) -> None:
    before = server.wait_until_idle()["generated_tokens"]
    connection = post_raw(server, {**ASKED, **fields})
    server.wait_until_running()
    connection.close()
    stats = server.wait_until_idle(timeout_s=1)
    assert stats["generated_tokens"] - before < LONG
    assert stats["kv_blocks_free"] == stats["kv_blocks_total"]


def test_a_client_that_stops_reading_is_cut_off(impatient: ServerProcess) -> None:
    server = impatient
    answers = 20
    body = {**ASKED, "n": answers, "logprobs": 20, "stream": True}
    connection = post_raw(server, body, SO_RCVBUF=4096)
    server.wait_until_running()
    ok = server.client().completions.create(model=MODEL_ID, prompt="hi", max_tokens=4)
    assert ok.choices
    stats = server.wait_until_idle(timeout_s=60)
    assert stats["generated_tokens"] < answers * LONG
    assert stats["kv_blocks_free"] == stats["kv_blocks_total"]
    with pytest.raises(ConnectionResetError):
        read_to_end(connection)


def test_a_body_that_never_ends_is_given_up(impatient: ServerProcess) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port)) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 100\r\n\r\n{"
        connection.sendall(head)
        connection.settimeout(5)
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")


def test_no_http_at_all(server: ServerProcess) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        connection.settimeout(5)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400")


def test_a_thousand_connections_at_once(server: ServerProcess) -> None:
    async def one() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        body = json.dumps({**ASKED, "max_tokens": 4, "stream": True}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n"
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        answer = await reader.read(-1)
        writer.close()
        return answer

    async def all_at_once() -> list[bytes]:
        return await asyncio.gather(*(one() for _ in range(1000)))

    answers = asyncio.run(all_at_once())
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    assert all(b"data: [DONE]" in answer for answer in answers)
    server.wait_until_idle()


def test_an_overloaded_server_says_when_to_come_back(narrow: ServerProcess) -> None:
    def post(_: int) -> httpx.Response:
        body = {**ASKED, "max_tokens": 300}
        return httpx.post(f"{narrow.url}/v1/completions", json=body, timeout=60)

    with ThreadPoolExecutor(8) as threads:
        responses = list(threads.map(post, range(8)))
    refused = [response for response in responses if response.status_code != 200]
    assert 0 < len(refused) < 8
    for response in refused:
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "overloaded"
        assert int(response.headers["retry-after"]) >= 1


def test_the_openai_client_retries_until_there_is_room(narrow: ServerProcess) -> None:
    client = narrow.client(max_retries=20)

    def ask(_: int) -> str | None:
        answer = client.completions.create(
            model=MODEL_ID, prompt="hi", max_tokens=64, extra_body={"ignore_eos": True}
        )
        return answer.choices[0].text

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(ask, range(6)))


def test_a_killed_engine_is_told_within_two_seconds_and_comes_back(mortal: ServerProcess) -> None:
    server = mortal
    before = server.health().json()["restarts"]
    with ThreadPoolExecutor(1) as thread:
        stream = server.client(max_retries=0).completions.create(
            model=MODEL_ID,
            prompt="hi",
            max_tokens=LONG,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(stream)
        whole = thread.submit(httpx.post, f"{server.url}/v1/completions", json=ASKED, timeout=60)
        server.wait_until_running(2)
        server.engine_process().kill()
        killed = time.monotonic()
        with pytest.raises(openai.APIError, match="engine process was killed"):
            list(stream)
        response = whole.result(timeout=10)
        assert time.monotonic() - killed < 2
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_unavailable"
    assert int(response.headers["retry-after"]) >= 1
    health = server.health()
    assert (health.status_code, health.json()["state"]) == (503, "restarting")
    server.wait_until_ready()
    assert server.health().json()["restarts"] == before + 1
    assert server.client().completions.create(model=MODEL_ID, prompt="hi").choices[0].text


def test_a_rank_killed_in_the_middle_is_named_and_all_ranks_come_back(
    start_server: StartServer,
) -> None:
    server = start_server(tensor_parallel_size=2).wait_until_ready()
    ask = {"model": MODEL_ID, "prompt": "hi", "temperature": 0, "max_tokens": 20}
    expected = httpx.post(f"{server.url}/v1/completions", json=ask, timeout=60).json()["choices"]
    engine = server.engine_process()
    [rank_1] = engine.children()
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(httpx.post, f"{server.url}/v1/completions", json=ASKED, timeout=60)
        server.wait_until_running()
        rank_1.kill()
        response = answer.result(timeout=30)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (503, "engine_unavailable")
    assert f"rank 1 (process {rank_1.pid}) was killed by SIGKILL" in error["message"]
    server.wait_until_ready()
    assert server.health().json()["restarts"] == 1
    assert not engine.is_running()
    again = httpx.post(f"{server.url}/v1/completions", json=ask, timeout=60).json()["choices"]
    assert again == expected


def test_the_openai_client_does_not_notice_a_killed_engine(mortal: ServerProcess) -> None:
    server = mortal
    before = server.health().json()["restarts"]
    client = server.client(max_retries=10)
    expected = client.completions.create(model=MODEL_ID, prompt="hi", temperature=0).choices[0].text
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(
            client.completions.create,
            model=MODEL_ID,
            prompt="hi",
            temperature=0,
            max_tokens=LONG,
            extra_body={"ignore_eos": True},
        )
        server.wait_until_running()
        server.engine_process().kill()
        assert answer.result(timeout=60).choices[0].text.startswith(expected)
    assert server.health().json()["restarts"] == before + 1


def test_a_stuck_engine_is_not_healthy(server: ServerProcess) -> None:
    engine = server.engine_process()
    engine.suspend()
    try:
        began = time.monotonic()
        health = server.health()
        assert time.monotonic() - began < 2
        assert health.status_code == 503
        assert "did not answer within 1 s" in health.json()["detail"]
    finally:
        with contextlib.suppress(Exception):
            engine.resume()
    server.wait_until_ready()
