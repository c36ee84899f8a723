"""Memory that gets short under load: answers stay right, the server stays up, nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server import short_memory
from tests.server.server_process import ServerProcess
from tests.server.tiny_model import MODEL_ID


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that says for how many tokens of a step there is memory."""
    return tmp_path_factory.mktemp("memory") / "memory"


@pytest.fixture(scope="module")
def server(model_folder: Path, memory: Path) -> Iterator[ServerProcess]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        patch.setenv(short_memory.FILE_VARIABLE, str(memory))
        started = ServerProcess(model_folder, builder=f"{short_memory.__name__}:build")
    yield started.wait_until_ready()
    started.close()


@pytest.fixture(autouse=True)
def _enough_memory_at_first(memory: Path) -> None:
    memory.unlink(missing_ok=True)


def set_tokens(memory: Path, tokens: int) -> None:
    new = memory.with_suffix(".new")
    new.write_text(str(tokens))
    new.replace(memory)


def body(number: int) -> dict[str, Any]:
    prompt = [3 + (7 * i + number) % 290 for i in range(60 + 10 * number)]
    fields: dict[str, Any] = {"temperature": 0} if number % 2 else {"seed": number, "top_p": 0.9}
    fields |= {"logprobs": 2, "echo": True} if number == 4 else {}
    return {"model": MODEL_ID, "prompt": prompt, "max_tokens": 80, "ignore_eos": True, **fields}


def post(server: ServerProcess, number: int, **fields: Any) -> httpx.Response:
    asked = {**body(number), **fields}
    return httpx.post(f"{server.url}/v1/completions", json=asked, timeout=60)


def texts(responses: list[httpx.Response]) -> list[str]:
    assert [response.status_code for response in responses] == [200] * len(responses)
    return [response.json()["choices"][0]["text"] for response in responses]


def assert_whole(server: ServerProcess) -> None:
    stats = server.wait_until_idle()
    assert stats["kv_blocks_free"] == stats["kv_blocks_total"]
    health = server.health().json()
    assert (health["status"], health["restarts"]) == ("ok", 0)


def test_requests_get_the_same_answers_in_smaller_steps(
    server: ServerProcess, memory: Path
) -> None:
    numbers = range(8)
    with ThreadPoolExecutor(8) as threads:
        expected = texts(list(threads.map(lambda i: post(server, i), numbers)))
        set_tokens(memory, 40)
        assert texts(list(threads.map(lambda i: post(server, i), numbers))) == expected
        running = [threads.submit(post, server, i) for i in numbers]
        server.wait_until_running(8)
        set_tokens(memory, 3)  # less than one token for each that runs
        assert texts([future.result() for future in running]) == expected
    assert len(set(expected)) == len(expected), "prompts must matter"
    assert "lacked memory: steps of up to" in "".join(server.errors)
    assert_whole(server)


def test_without_any_memory_requests_get_503_until_there_is_some(
    server: ServerProcess, memory: Path
) -> None:
    [expected] = texts([post(server, 1)])
    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(post, server, i, max_tokens=1500) for i in range(4)]
        server.wait_until_running(4)
        set_tokens(memory, 0)
        responses = [future.result() for future in running] + [post(server, 5)]
    for response in responses:
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (503, "out_of_memory")
        assert "no memory left" in error["message"]
        assert int(response.headers["retry-after"]) >= 1
    memory.unlink()
    assert texts([post(server, 1)]) == [expected]
    assert_whole(server)


def test_a_stream_says_so_in_its_last_event(server: ServerProcess, memory: Path) -> None:
    asked = {**body(1), "stream": True, "max_tokens": 1900}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=asked, timeout=60) as response:
        events = response.iter_lines()
        assert next(events).startswith("data: {")
        set_tokens(memory, 0)
        *_, last = [line for line in events if line]
    assert '"code":"out_of_memory"' in last
    memory.unlink()
    assert_whole(server)
